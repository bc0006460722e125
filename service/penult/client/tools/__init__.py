"""Bulk work on images and collections, on top of the client."""
