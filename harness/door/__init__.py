"""The door: command line, console, reports. Only here is anything printed."""
