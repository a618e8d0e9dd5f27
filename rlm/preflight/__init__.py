"""GO or NO-GO before a run: the forecast of its time and the verdict on its settings."""
