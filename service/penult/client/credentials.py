"""TLS and tokens: how a client verifies the server and identifies itself."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Fields of Security, and the variables they are read from.
VARIABLES = {
    "ca": "PENULT_CA",
    "certificate": "PENULT_CLIENT_CERT",
    "key": "PENULT_CLIENT_KEY",
    "server_name": "PENULT_SERVER_NAME",
    "token_file": "PENULT_TOKEN_FILE",
}
TOKEN_VARIABLE, TLS_VARIABLE = "PENULT_TOKEN", "PENULT_TLS"


class SecurityError(Exception):
    """A file or setting needed for a secure connection is missing or invalid; `message` is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Security:
    """How a connection is secured; by default it is not.

    Attributes:
        tls: Encrypt, and accept certificates of the system's authorities.
        ca: PEM file of the authority to accept instead; implies `tls`.
        certificate: PEM file of the client's own certificate, for mutual TLS.
        key: PEM file of its key.
        token: Bearer token, sent with every request over TLS or to this machine.
        token_file: File with the token in its first line.
        server_name: Name on the server's certificate, if it is not the address.
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
        """Return the security that PENULT_TLS=1, PENULT_CA, PENULT_CLIENT_CERT, PENULT_TOKEN … ask for."""
        found: dict[str, Any] = {name: environment.get(variable) for name, variable in VARIABLES.items()}
        given: dict[str, Any] = {
            name: value if name == "server_name" else Path(value) for name, value in found.items() if value
        }
        is_tls = environment.get(TLS_VARIABLE, "").lower() in ("1", "true", "on")
        return cls(tls=is_tls, token=environment.get(TOKEN_VARIABLE, ""), **given)


NONE = Security()


def read_file(path: Path) -> bytes:
    """Return a file's bytes; raise SecurityError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityError(f"{path} cannot be read ({error.strerror}); check the path") from error
