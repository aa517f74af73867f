"""Collections and items on disk: one SQLite database, which is the truth."""
