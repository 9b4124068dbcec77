"""Quantised weights in PyTorch."""
