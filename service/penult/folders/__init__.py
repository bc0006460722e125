"""Folders of images as people and tools leave them: find the images, and count the other files.

The standard library alone, because clients on the base install walk folders by the same rules as learning.
"""
