"""Whole runs in a notebook, for any backend: what is opened, trained and measured by one call."""
