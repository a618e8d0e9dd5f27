"""The settings of every script, a file a script; config.py at the root is the door."""
