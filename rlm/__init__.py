"""How it is done: formats, answers, generation, learning. The scripts at the root import this."""
