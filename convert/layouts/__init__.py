"""Whole models as others lay them out: names and configurations there and back."""
