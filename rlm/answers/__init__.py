"""What a completion states and whether it is right: formats, reading, exact values."""
