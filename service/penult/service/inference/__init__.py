"""From images to results: admission, decoding, batching, scoring, drift."""
