"""The report of a run: data, plots and HTML."""
