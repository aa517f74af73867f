"""What the calls of the four services send, and how their replies are read; nothing here opens a connection."""
