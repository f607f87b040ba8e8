"""Errors, types, the declaration of a task, registries, identities and random streams; imports no heavy library."""
