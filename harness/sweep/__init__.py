"""From a request to a grid of configurations, a plan of cells, and their execution."""
