"""Training steps over a network with a chosen delay and loss: python -m tests.stress.network."""
