"""The one limit of time in the tests: no figure of them depends on how fast a machine is."""

HUNG = 3600
"""Seconds after which it is no longer the machine that is slow: on an idle one, what waits for this takes a few."""
