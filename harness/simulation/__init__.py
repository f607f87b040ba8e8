"""Phantoms: generated subjects with a known truth."""
