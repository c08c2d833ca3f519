"""Preflight: finds what would stop a run on many nodes before it starts. See docs/multi-node.md."""

from dyme.preflight.checks import Finding, check
from dyme.preflight.facts import Facts, Gpu

__all__ = ["Facts", "Finding", "Gpu", "check"]
