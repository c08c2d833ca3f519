"""Preemption, hung ranks and the way a launcher ends."""
