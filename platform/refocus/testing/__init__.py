"""Instruments for tests and demonstrations: a private cluster, a store that misbehaves."""
