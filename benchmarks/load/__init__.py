"""Load on a server from a process of its own: what is sent, when, and what became of it."""
