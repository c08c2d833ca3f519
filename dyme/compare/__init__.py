"""Comparison of two evaluations of the same data, or of the two columns of one: paired tests and what flipped.

    python -m dyme.compare runs/quickstart-grpo runs/quickstart

docs/compare.md says what each number is.
"""
