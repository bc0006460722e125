"""`penult bench`: put load on a server and measure it, or tune its settings."""

import argparse
from pathlib import Path

from penult.bench.settings import LoadSettings, TuneSettings, settings_of
from penult.cli.arguments import add_security_arguments, security_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult bench`; its --config is the file of `penult serve` that --tune writes."""
    LoadSettings.add_flags(parser)
    add_security_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for bench.json and bench.png (tune.…)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--tune", action="store_true", default=argparse.SUPPRESS, help="start servers on loopback and try settings"
    )
    TuneSettings.add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure or tune; return the exit code."""
    settings = settings_of(vars(arguments), security_of(arguments))
    from penult.bench.run import bench  # gRPC and the numbers, which --help does not need

    return bench(settings)
