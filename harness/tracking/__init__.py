"""MLflow; imported here and nowhere else."""
