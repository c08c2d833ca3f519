"""Supervision of the thinking: how well a trace agrees with what is known about the picture."""
