"""Measures: how far pictures obey their hints, and when a training has learned to."""
