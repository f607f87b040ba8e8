"""One study in one plain process: train, predict, explain, probe, score, aggregate."""
