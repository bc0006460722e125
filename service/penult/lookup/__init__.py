"""Collections of items with a descriptor each, and the nearest of them: what is stored, checked and searched.

types    items, hits, filters, and what an engine must offer
checks   what is refused, whichever engine answers
embedded SQLite as the record, FAISS in memory as an index that can always be made again: nothing to start
"""
