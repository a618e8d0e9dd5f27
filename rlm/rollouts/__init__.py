"""A step's scored completions, and which engine samples them: ours, vLLM here or elsewhere."""
