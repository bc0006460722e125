"""How a client knows the server, and shows who it is itself. opening.py connects."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_VARIABLES = {
    "ca": "PENULT_CA", "certificate": "PENULT_CLIENT_CERT", "key": "PENULT_CLIENT_KEY",
    "server_name": "PENULT_SERVER_NAME", "token_file": "PENULT_TOKEN_FILE",
}  # fmt: skip
_TOKEN, _TLS = "PENULT_TOKEN", "PENULT_TLS"


class SecurityError(Exception):
    """Something that is needed to connect safely is missing or cannot be used; `message` is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Security:
    """What protects a connection; by default nothing does.

    `tls`: encrypt, and believe a server with a certificate of the system's authorities, or of `ca` (PEM file, implies
    `tls`). `certificate` and `key` (PEM files): the client's own. `token`, or the first line of `token_file`: sent
    with every request, over TLS or to this machine only. `server_name`: the name on the certificate, where it is not
    the address.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    server_name: str = ""

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.ca is not None or self.certificate is not None

    def own_token(self) -> str:
        """Return the token, "" for none; raise SecurityError."""
        if self.token or not self.token_file:
            return self.token
        lines = read_file(self.token_file).decode(errors="replace").splitlines()
        return lines[0].strip() if lines else ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Security":
        """Return what PENULT_TLS=1, PENULT_CA, PENULT_CLIENT_CERT, PENULT_CLIENT_KEY, PENULT_TOKEN… say."""
        found: dict[str, Any] = {name: environment.get(variable) for name, variable in _VARIABLES.items()}
        given: dict[str, Any] = {
            name: value if name == "server_name" else Path(value) for name, value in found.items() if value
        }
        is_tls = environment.get(_TLS, "").lower() in ("1", "true", "on")
        return cls(tls=is_tls, token=environment.get(_TOKEN, ""), **given)


NONE = Security()


def add_security_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a connection's security; what they leave out, variables may say."""
    group = parser.add_argument_group("security")
    group.add_argument("--tls", action="store_true", help="encrypt; the server's certificate must be a known one (off)")
    for flag, name, help_ in (
        ("--ca", "ca", "PEM file of the authority that the server's certificate is of; implies --tls"),
        ("--client-cert", "certificate", "PEM file of the client's own certificate, for mutual TLS"),
        ("--client-key", "key", "PEM file of its key"),
        ("--token-file", "token_file", f"file with the token to send; or set {_TOKEN}"),
    ):
        group.add_argument(flag, type=Path, metavar="FILE", dest=name, help=f"{help_} ({_VARIABLES[name]})")
    group.add_argument("--server-name", metavar="NAME", help="the name on the certificate, if it is not the address")


def from_arguments(arguments: argparse.Namespace) -> Security:
    """Return the security that flags and variables ask for."""
    told = Security.from_environment()
    given = {name: value for name in _VARIABLES if (value := getattr(arguments, name, None))}
    known = {name: getattr(told, name) for name in _VARIABLES} | given
    return Security(tls=told.tls or getattr(arguments, "tls", False), token=told.token, **known)


def read_file(path: Path) -> bytes:
    """Return a file's bytes; raise SecurityError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityError(f"{path} cannot be read ({error.strerror}); check the path") from error
