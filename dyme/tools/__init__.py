"""Commands about a model: what it supports, what it needs, merged adapters."""
