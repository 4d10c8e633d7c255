"""Sharpness measures, the in-focus plane, alignment of planes."""
