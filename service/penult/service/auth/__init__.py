"""TLS, tokens and the identity of callers."""
