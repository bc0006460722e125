"""Folders of photos as people and tools leave them: which files are photos, and what else lies among them.

The standard library alone: clients on the base install walk folders by the same rules as learning does.
"""
