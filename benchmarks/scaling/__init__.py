"""Predicted step time on many GPUs: python -m benchmarks.scaling."""
