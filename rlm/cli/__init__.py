"""How settings are read: defaults, a file, the environment, flags. It knows none of our classes."""
