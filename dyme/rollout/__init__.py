"""Rollouts: completions sampled from a copy of the weights, with noise that is a pure function of its place."""
