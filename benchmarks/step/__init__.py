"""One whole training step, side by side: python -m benchmarks.step."""
