"""`penult check` and `penult sign`: what is right with a bundle, and who vouches for it."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from penult.bundle import signature
from penult.bundle.errors import BundleError, PenultError
from penult.bundle.reader import Bundle, read_bundle, read_signed_manifest
from penult.bundle.signature import Trust
from penult.bundle.writer import put_signature

if TYPE_CHECKING:
    from penult.service.models.loader import ServedModel

_PASSPHRASE = "PENULT_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult check`."""
    _add_model(parser, None)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where to replay the goldens")
    parser.add_argument(
        "--trusted-key", type=Path, action="append", metavar="FILE", default=None,
        help="a public key that must have signed it; several are given one by one (default: PENULT_TRUSTED_KEY)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def check(arguments: argparse.Namespace) -> int:
    """Print whether a bundle is good; return 0, or 1 with the reason."""
    from penult.service.models.loader import Placement, load  # the runtime, which signing can do without

    paths = arguments.trusted_key or signature.split_paths(os.environ.get("PENULT_TRUSTED_KEY", ""))
    try:
        bundle = read_bundle(arguments.model, arguments.version, signature.trust(paths))
        model = load(bundle, Placement(arguments.device))
    except BundleError as error:
        if arguments.json:
            print(json.dumps({"ok": False, "reason": error.reason, "message": error.message}))
        else:
            print(f"penult: {error.message} ({error.reason})", file=sys.stderr)
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


def add_sign_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult sign`."""
    _add_model(parser, "?")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the private ed25519 key, PEM or OpenSSH's")
    parser.add_argument(
        "--new-key", type=Path, metavar="FILE", help="make a key first: FILE is private, FILE.pub is for --trusted-key"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def sign(arguments: argparse.Namespace) -> int:
    """Make a key, or sign a bundle whose digests are right, or both; raise PenultError."""
    if not (arguments.new_key or (arguments.model and arguments.key)):
        raise PenultError("SIGN_WHAT", "give MODEL and --key FILE, or --new-key FILE to make a key first")
    # What is signed was whole: nobody should vouch for a file that is not what the manifest says. Before a key is made,
    # so that a mistyped model leaves none behind.
    bundle = read_bundle(arguments.model, arguments.version) if arguments.model else None
    if arguments.new_key:
        id_ = signature.new_key(arguments.new_key)
        told: dict[str, object] = {"key": str(arguments.new_key), "public_key": f"{arguments.new_key}.pub", "id": id_}
        line = f"new key {id_}: keep {arguments.new_key} to yourself, give {arguments.new_key}.pub to servers"
        _tell(arguments, told, line)
    if bundle:
        _sign(arguments, bundle)
    return 0


def _sign(arguments: argparse.Namespace, bundle: Bundle) -> None:
    passphrase = os.environ.get(_PASSPHRASE)
    key = signature.read_private_key(arguments.key or arguments.new_key, passphrase.encode() if passphrase else None)
    folder, id_ = arguments.model / str(bundle.version), signature.key_id(key.public_key())
    manifest = read_signed_manifest(folder, signature.ANYBODY)
    if manifest.manifest != bundle.manifest:
        raise BundleError("MANIFEST_CHANGED", f"{folder} changes while it is signed; try again when it holds still")
    put_signature(folder, signature.sign(manifest.data, key))
    own = Trust((signature.TrustedKey(id_, key.public_key()),))
    read_signed_manifest(folder, own)  # as a server will: what is on the disk is what was signed
    told: dict[str, object] = {"model": bundle.name, "version": bundle.version, "signer": id_}
    _tell(arguments, told, f"{bundle.name} version {bundle.version}: signed by key {id_}")


def _tell(arguments: argparse.Namespace, told: dict[str, object], line: str) -> None:
    print(json.dumps(told) if arguments.json else line)


def _add_model(parser: argparse.ArgumentParser, nargs: str | None) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, nargs=nargs, help="a folder like models/NAME")
    parser.add_argument("--version", type=int, metavar="V", help="which version (default: the newest)")
