"""The store of finished cells, and atomic files."""
