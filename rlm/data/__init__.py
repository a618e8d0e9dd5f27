"""Where questions come from: files, the hub, generators; and which split each belongs to."""
