"""The command line, the Python interface for notebooks, and the console; the only layer that prints."""
