"""Gradients: log-probabilities of completions, the losses, the optimiser, memory."""
