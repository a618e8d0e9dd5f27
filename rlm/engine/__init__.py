"""Generation: continuous batching over a key-value cache, sampling, CUDA graphs."""
