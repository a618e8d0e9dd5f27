"""A base model, its tokenizer, its adapter, its prompt, and the layers that make it fast."""
