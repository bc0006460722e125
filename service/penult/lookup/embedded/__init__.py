"""The engine that needs nothing started: SQLite as the record, FAISS in memory for the search."""

from penult.lookup.embedded.store import EmbeddedStore

__all__ = ["EmbeddedStore"]
