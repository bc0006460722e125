"""`penult token`: create a bearer token for callers of a server."""

import argparse
import json
from pathlib import Path

from penult.service.auth.tokens import READ, RIGHTS, add_token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult token`."""
    parser.add_argument("name", metavar="NAME", help="name of its user, for logs and fair queueing")
    parser.add_argument("--right", choices=RIGHTS, default=READ, help="what the token permits (%(default)s)")
    parser.add_argument(
        "--file", type=Path, default=Path("tokens"), metavar="FILE", help="file of serve --tokens (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Create a token and print it, once; raise PenultError."""
    token = add_token(arguments.file, arguments.name, arguments.right)
    value = {"name": arguments.name, "right": arguments.right, "token": token, "file": str(arguments.file)}
    print(json.dumps(value) if arguments.json else token)
    return 0
