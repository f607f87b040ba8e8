"""Each paper's experiments as named grids, and the search spaces for tuning."""
