"""Collections of items with a descriptor each: store them, check them, search the nearest.

types    items, hits, filters, and what an engine must offer
checks   what every engine rejects
embedded SQLite as the record, FAISS in memory as an index that can be rebuilt: no server needed
"""
