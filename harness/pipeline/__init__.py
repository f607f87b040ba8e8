"""The stages of a study, each in a single process: train, predict, explain, probe, score, aggregate."""
