"""The metrics port: metrics, probes, the status page and its routes."""
