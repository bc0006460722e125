"""`penult check`: verify a bundle."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from penult.bundle import signature
from penult.bundle.errors import BundleError
from penult.bundle.reader import Bundle, read_bundle
from penult.console import print_error

if TYPE_CHECKING:
    from penult.service.models.loader import ServedModel


def add_bundle_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the arguments that name a bundle."""
    parser.add_argument("model", metavar="MODEL", type=Path, nargs=nargs, help="model folder, such as models/NAME")
    parser.add_argument("--version", type=int, metavar="V", help="model version (default: the newest)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult check`."""
    add_bundle_arguments(parser)
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="device of the golden tests (%(default)s)"
    )
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        metavar="FILE",
        default=None,
        help="public key of an accepted signer; repeat for several (PENULT_TRUSTED_KEY)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print whether a bundle is valid; return 0, or 1 with the reason."""
    from penult.service.models.loader import Placement, load  # the runtime, which --help does not need

    paths = arguments.trusted_key or signature.split_paths(os.environ.get("PENULT_TRUSTED_KEY", ""))
    try:
        bundle = read_bundle(arguments.model, arguments.version, signature.trust(paths))
        model = load(bundle, Placement(arguments.device))
    except BundleError as error:
        if not arguments.json:
            return print_error(f"{error.message} ({error.reason})")
        print(json.dumps({"ok": False, "reason": error.reason, "message": error.message}))
        return 1
    print(json.dumps(_facts(model, bundle)) if arguments.json else _sentence(model, bundle))
    return 0


def _facts(model: "ServedModel", bundle: Bundle) -> dict[str, object]:
    return {
        "ok": True, "model": model.name, "version": model.version, "fingerprint": model.fingerprint,
        "signed": bundle.is_signed, "signer": bundle.signer or None,
        "provider": model.session.provider, "golden_difference": model.golden_difference,
    }  # fmt: skip


def _sentence(model: "ServedModel", bundle: Bundle) -> str:
    who = "Not signed."
    if bundle.signer:
        who = f"Signed by trusted key {bundle.signer}."
    elif bundle.is_signed:
        who = "It holds a signature; --trusted-key FILE.pub would say whose."
    return (
        f"{model.name} version {model.version}: good. All digests match; goldens replayed on {model.session.provider}: "
        f"labels identical, values within {model.golden_difference:.0e}. {who}"
    )
