"""Options of the commands that learn. Light to import: no PyTorch, no scikit-learn."""
