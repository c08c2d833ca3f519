"""What this repository's own training does not call: the losses under torch.compile, and a head that is sharded by
vocabulary. Nothing outside this folder but the package's `__init__.py` imports it."""
