"""Tasks, one module per study; installed as ``harness.tasks``."""
