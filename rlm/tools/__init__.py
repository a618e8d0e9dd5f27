"""Tools that a model calls while it reasons: what they are, how a call is written, who runs it."""
