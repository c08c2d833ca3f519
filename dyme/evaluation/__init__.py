"""Evaluation: items, their statistics and the tables made of them."""
