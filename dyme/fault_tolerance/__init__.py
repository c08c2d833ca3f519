"""Preemption, hung ranks, the lock of a run folder and the way a launcher ends."""
