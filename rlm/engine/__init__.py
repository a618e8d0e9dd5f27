"""Generation: a rolling batch over a key-value cache, sampling, CUDA graphs."""
