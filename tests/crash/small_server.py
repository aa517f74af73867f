"""`lookwire-server` that builds a generation after a few hundred writes, so that a short life sees every step of it."""

from lookwire_server.__main__ import main
from lookwire_server.search.index import builder, live

live.SEALED_ITEMS = 100
live.COMPACTION_SLOTS = 60
builder.APPROXIMATE_ITEMS = 150
builder.PAUSE_SECONDS = 0.2

if __name__ == "__main__":
    main()
