"""The studies. One page each; installed as ``harness.tasks``."""
