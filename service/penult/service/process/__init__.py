"""Start and stop `penult serve`: one process, or a supervisor with several workers."""
