"""Measuring and comparing models, and the statistics of it."""
