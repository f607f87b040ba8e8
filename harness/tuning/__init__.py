"""Many cells: Ray, Tune, Optuna and MLflow live here and nowhere else."""
