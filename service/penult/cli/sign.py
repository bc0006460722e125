"""`penult sign`: create a signing key, or sign a bundle."""

import argparse
import json
import os
from pathlib import Path

from penult.bundle import signature
from penult.bundle.errors import BundleError, PenultError
from penult.bundle.reader import Bundle, read_bundle, read_signed_manifest
from penult.bundle.signature import Trust
from penult.bundle.writer import put_signature
from penult.cli.check import add_bundle_arguments

_PASSPHRASE = "PENULT_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult sign`."""
    add_bundle_arguments(parser, "?")
    parser.add_argument("--key", type=Path, metavar="FILE", help="private ed25519 key, in PEM or OpenSSH format")
    parser.add_argument(
        "--new-key", type=Path, metavar="FILE", help="create a key: FILE is private, FILE.pub for --trusted-key"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Create a key, or sign a bundle whose digests match, or both; raise PenultError."""
    if not (arguments.new_key or (arguments.model and arguments.key)):
        raise PenultError("SIGN_WHAT", "give MODEL and --key FILE, or --new-key FILE to make a key first")
    # Digests are verified, so that no corrupt file is signed. This comes first, so that a mistyped model leaves no key.
    bundle = read_bundle(arguments.model, arguments.version) if arguments.model else None
    if arguments.new_key:
        id_ = signature.new_key(arguments.new_key)
        public = f"{arguments.new_key}.pub"
        line = f"new key {id_}: keep {arguments.new_key} to yourself, give {public} to servers"
        _print(arguments, {"key": str(arguments.new_key), "public_key": public, "id": id_}, line)
    if bundle:
        _sign(arguments, bundle)
    return 0


def _sign(arguments: argparse.Namespace, bundle: Bundle) -> None:
    passphrase = os.environ.get(_PASSPHRASE)
    key = signature.read_private_key(arguments.key or arguments.new_key, passphrase.encode() if passphrase else None)
    folder, id_ = arguments.model / str(bundle.version), signature.key_id(key.public_key())
    manifest = read_signed_manifest(folder, signature.ANYBODY)
    if manifest.manifest != bundle.manifest:
        raise BundleError("MANIFEST_CHANGED", f"{folder} changed while it was signed; sign it again")
    put_signature(folder, signature.sign(manifest.data, key))
    own = Trust((signature.TrustedKey(id_, key.public_key()),))
    read_signed_manifest(folder, own)  # as a server does: the file on the disk is the one that was signed
    value = {"model": bundle.name, "version": bundle.version, "signer": id_}
    _print(arguments, value, f"{bundle.name} version {bundle.version}: signed by key {id_}")


def _print(arguments: argparse.Namespace, value: dict[str, object], line: str) -> None:
    print(json.dumps(value) if arguments.json else line)
