"""manifest.sig: the signature of a bundle.

64 bytes: the ed25519 signature (RFC 8032) of manifest.json, byte for byte. The manifest holds the digest of every other
file, so the signature covers all of them. It does not cover the folder's name and number, since a bundle may be copied.
OpenSSL verifies it too: openssl pkeyutl -verify -rawin -pubin -inkey KEY.pub -in manifest.json -sigfile manifest.sig

Only this module uses `cryptography` for keys. It imports it inside functions, so that other commands start faster.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penult.bundle.errors import BundleError, PenultError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_NAME = "manifest.sig"
SIGNATURE_BYTES = 64
_KEY_MAX_BYTES = 64 << 10
_ID_DIGITS = 16


class KeyUnusable(PenultError):
    """A key cannot be read, or is of another kind."""


@dataclass(frozen=True)
class TrustedKey:
    """A trusted public key. `id`: the first 16 hex digits of the SHA-256 of its 32 bytes."""

    id: str
    key: "Ed25519PublicKey"


@dataclass(frozen=True)
class Trust:
    """The accepted bundles: all without `keys`, otherwise only those that one of the keys signed.

    `is_unsigned_allowed` also accepts bundles without a signature. A bundle with a wrong signature is always rejected.
    """

    keys: tuple[TrustedKey, ...] = ()
    is_unsigned_allowed: bool = False

    def signer(self, manifest: bytes, signature: bytes | None, folder: Path) -> str:
        """Return the id of the key that signed a manifest, "" without a trusted signature; raise BundleError."""
        if not self.keys or (signature is None and self.is_unsigned_allowed):
            return ""
        if signature is None:
            raise BundleError(
                "SIGNATURE_MISSING",
                f"{folder} is not signed, and a trusted key is set; sign it with penult sign {folder.parent} "
                f"--version {folder.name} --key FILE",
            )
        for trusted in self.keys:
            if _is_signed_by(trusted.key, signature, manifest):
                return trusted.id
        raise BundleError(
            "SIGNATURE_WRONG",
            f"the signature of {folder} is of no trusted key, or the manifest was changed after it; find out who "
            "changed it before you sign it again",
        )


ANYBODY = Trust()


def trust(paths: Iterable[Path], is_unsigned_allowed: bool = False) -> Trust:
    """Return the trust in the owners of public key files; raise KeyUnusable."""
    return Trust(tuple(_trusted(path) for path in paths), is_unsigned_allowed)


def sign(manifest: bytes, key: "Ed25519PrivateKey") -> bytes:
    """Return the signature of a manifest's bytes."""
    return key.sign(manifest)


def read_private_key(path: Path, passphrase: bytes | None = None) -> "Ed25519PrivateKey":
    """Read an ed25519 key, PEM (PKCS #8) or, without a passphrase, OpenSSH's; raise KeyUnusable."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _read(path)
    read: Any = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        key = read(data, passphrase)
    except TypeError as error:  # what cryptography raises where a passphrase lacks, or is not needed
        raise KeyUnusable(
            "KEY_PASSPHRASE", f"{path}: {_lower(error)}; set or unset PENULT_KEY_PASSPHRASE accordingly"
        ) from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and what the parser below them raises
        raise KeyUnusable("KEY_INVALID", f"{path} holds no private key that can be read: {_lower(error)}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable("KEY_KIND", f"{path} is no ed25519 key; make one with penult sign --new-key FILE")
    return key


def key_id(key: "Ed25519PublicKey") -> str:
    """Return what a key is called in logs and answers."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_ID_DIGITS]


def new_key(path: Path) -> str:
    """Make a key, private in `path` (mode 600), public in `path`.pub, both PEM; return its id.

    Raises KeyUnusable if one of the files exists already, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name + ".pub")
    pem = serialization.Encoding.PEM
    private_pem = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public_pem = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise KeyUnusable("KEY_EXISTS", f"{public} is there already; keys are never overwritten")
    for target, data, mode in ((path, private_pem, 0o600), (public, public_pem, 0o644)):
        _write_new(target, data, mode)
    return key_id(key.public_key())


def _trusted(path: Path) -> TrustedKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data = _read(path)
    read: Any = load_ssh_public_key if data.startswith(b"ssh-") else load_pem_public_key
    try:
        key = read(data)
    except Exception as error:  # UnsupportedAlgorithm, ValueError, and what the parser below them raises
        advice = "give the .pub file, not the private key" if b"PRIVATE" in data else _lower(error)
        raise KeyUnusable("KEY_INVALID", f"{path} holds no public key that can be read: {advice}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable("KEY_KIND", f"{path} is no ed25519 key; bundles are signed with no other kind")
    return TrustedKey(key_id(key), key)


def _is_signed_by(key: "Ed25519PublicKey", signature: bytes, manifest: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_MAX_BYTES)
    except OSError as error:
        raise KeyUnusable("KEY_UNREADABLE", f"{path} cannot be read ({error.strerror}); check the path") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise KeyUnusable("KEY_EXISTS", f"{path} is there already; keys are never overwritten") from None
    except OSError as error:
        raise KeyUnusable("KEY_UNWRITABLE", f"{path} cannot be written ({error.strerror})") from error


def _lower(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:1].lower() + text[1:]).rstrip(".") or type(error).__name__


def split_paths(text: str) -> Sequence[Path]:
    """Return the paths of a setting: several stand with commas between."""
    return [Path(part.strip()) for part in text.split(",") if part.strip()]
