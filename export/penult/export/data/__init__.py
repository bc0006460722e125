"""Labelled images: find, split, index, load and augment them."""
