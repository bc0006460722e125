"""`penult bench`: load on a running server, measured.

To read it, start with settings, requests (what is sent), pace (when) and load (how). Then measure (numbers), show and
picture. tune uses them all.
"""
