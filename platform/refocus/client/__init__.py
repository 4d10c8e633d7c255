"""The HTTP client; it stands on the wire format alone."""
