"""Collections: SQLite holds the items, FAISS searches their vectors. Knows vectors, not models."""
