"""Checks a checkpoint on this machine: `python -m dyme.tools.check`."""
