"""Recipes: how networks are trained."""
