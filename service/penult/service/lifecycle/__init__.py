"""Load, replace, recover and unload models while the server runs."""
