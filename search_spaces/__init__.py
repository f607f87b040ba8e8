"""Experiments, hypotheses and search spaces of the tasks, one module per study."""
