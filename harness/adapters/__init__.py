"""Adapters: convert samples to network inputs, and network outputs to predictions."""
