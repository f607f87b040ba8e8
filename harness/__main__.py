"""``python -m harness``: the command line."""

from harness.door.cli import main

main()
