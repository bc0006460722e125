"""One file per job that a user runs: train, svm, quantize, sweep, dry run, demo."""
