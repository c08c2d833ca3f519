"""Rewards: split a completion, verify its answer, compose format, thinking and accuracy into one number."""
