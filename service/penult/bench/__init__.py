"""`penult bench`: load on a running service, and what it answers. Read in this order:

settings → requests (what is sent) → load (how it is sent) → measure (numbers) → show, picture; tune on top.
"""
