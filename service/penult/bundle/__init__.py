"""The contract between learning and serving: what a bundle holds, how it is read, written and checked.

Both stages import this package and nothing of each other. It needs NumPy and Pillow only.
"""
