"""Training steps over a network with a chosen delay and loss: python -m benchmarks.network."""
