"""Sections of the configuration. Light: read before any model loads."""
