"""Pins: recorded behaviour of a model, and a verdict that tells noise from change."""
