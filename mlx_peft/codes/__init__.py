"""Weights and activations in few bits, in NumPy: codes read and packed, quantisers chosen, sizes told."""
