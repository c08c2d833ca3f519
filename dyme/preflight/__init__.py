"""Preflight: finds what would stop a run on many nodes before it starts. See docs/multi-node.md."""
