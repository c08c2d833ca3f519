"""Verifiers against the published metrics: `python -m benchmarks.verdicts`."""
