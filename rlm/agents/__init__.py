"""Graphs of agents: read, run on a frozen model, scored, evaluated."""
