"""`penult bench`: load on a running service, and what it answers.

Read settings, requests (what is sent), pace (when), load (how), measure (numbers), then show and picture; tune is on
top.
"""
