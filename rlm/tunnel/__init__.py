"""The public address of a server: ngrok, watched and started again."""
