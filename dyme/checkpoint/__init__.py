"""Checkpoints, their manifest and the exported model."""
