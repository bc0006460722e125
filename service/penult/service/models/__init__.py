"""Models in memory: loaded from bundles and looked up by name and version."""
