"""Whole training configurations, as functions."""
