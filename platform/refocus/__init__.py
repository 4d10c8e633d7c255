"""Refocus brings defocused microscopy images into focus from a single shot."""

__version__ = "0.1.0"
