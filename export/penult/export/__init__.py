"""Learning: from labelled photos to a checked bundle. Needs the `export` extra; the service never imports it."""
