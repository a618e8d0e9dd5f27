"""The HTTP server: requests in, one engine thread, replies and streams out."""
