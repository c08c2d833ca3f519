"""What this machine makes of a checkpoint: `python -m dyme.tools.check`."""
