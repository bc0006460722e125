"""`penult bench`: load on a server."""

import argparse


def run(arguments: argparse.Namespace) -> int:
    """Measure or tune; return the exit code."""
    from penult.bench.settings import from_arguments

    settings = from_arguments(arguments)
    from penult.bench.run import bench

    return bench(settings)
