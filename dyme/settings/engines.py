"""The registry of rollout engines: names for `rollout.engine`, and where the classes are. Strings, because settings are
read before any model loads; `dyme/rollout/registry.py` starts them."""

ENGINES: dict[str, str] = {
    "shared_prefix": "dyme.rollout.shared_prefix:SharedPrefixEngine",
    "hf": "dyme.rollout.hf:HfEngine",
}
"""Name -> module and class. `auto` takes the first one that can serve the family; hf serves every family."""
