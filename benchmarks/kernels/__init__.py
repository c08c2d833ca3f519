"""Speed, memory and accuracy of the losses beside those of other libraries: `python -m benchmarks.kernels`."""
