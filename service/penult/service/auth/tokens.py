"""Bearer tokens and their rights. A file of lines, `NAME RIGHT SHA-256 of the token`; # begins a comment.

The file holds digests only, so reading it gives no access. `admin` includes `write`, which includes `read`.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penult.bundle.errors import PenultError
from penult.service.auth.file_watcher import WatchedFile
from penult.service.errors import ConfigError, NotAllowed, Unauthenticated

READ, WRITE, ADMIN = RIGHTS = ("read", "write", "admin")
# By method name; all others, and whatever else is served beside them, are for reading.
_RIGHT_OF = {
    "PutItems": WRITE, "DeleteItems": WRITE, "Feedback": WRITE,
    "DropCollection": ADMIN, "ReplaceCollection": ADMIN, "RepositoryModelLoad": ADMIN, "RepositoryModelUnload": ADMIN,
}  # fmt: skip
_SCHEME = "bearer "
# What tools that look for leaked secrets can find.
_PREFIX = "penult_"
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Token:
    name: str
    right: str
    digest: bytes


def right_of(method: str) -> str:
    """Return the right that a method needs, by its name without the service's."""
    return _RIGHT_OF.get(method, READ)


class Tokens:
    """The tokens of a file that may change."""

    def __init__(self, path: Path, on_read: Callable[[str], object] = lambda outcome: None) -> None:
        """Read the file; raise ConfigError. `on_read` is called with the outcome of each later read."""
        self.watched_file = WatchedFile("tokens", [path], lambda: _read(path), on_read)

    def check(self, authorization: str, right: str) -> str:
        """Return the name of the token in an Authorization header; raise Unauthenticated, NotAllowed."""
        if not authorization:
            raise Unauthenticated("TOKEN_MISSING", "send a token: Authorization: Bearer TOKEN (penult … --token-file)")
        # The value is digested and compared with every line, so that the time taken reveals nothing.
        given = hashlib.sha256(_without_scheme(authorization).encode()).digest()
        found = None
        for token in self.watched_file.value:
            if hmac.compare_digest(token.digest, given):
                found = token
        if found is None:
            raise Unauthenticated("TOKEN_UNKNOWN", "the token is not known here; ask the operator for one")
        if RIGHTS.index(found.right) < RIGHTS.index(right):
            raise NotAllowed("TOKEN_RIGHT", f"this needs a token with the right to {right}; yours is for {found.right}")
        return found.name


def _without_scheme(authorization: str) -> str:
    is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME
    return authorization[len(_SCHEME) :].strip() if is_bearer else ""


def _read(path: Path) -> tuple[_Token, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("TOKENS_UNREADABLE", f"{path} cannot be read; make it with penult token NAME") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if (
            len(words) != 3
            or words[1] not in RIGHTS
            or not _NAME.fullmatch(words[0])
            or not _DIGEST.fullmatch(words[2])
        ):
            raise ConfigError(
                "TOKENS_INVALID",
                f"{path}, line {number} is not NAME {'|'.join(RIGHTS)} SHA-256; penult token NAME writes such lines",
            )
        found.append(_Token(words[0], words[1], bytes.fromhex(words[2])))
    return tuple(found)


def add_token(path: Path, name: str, right: str) -> str:
    """Create a token, append its digest to a file, and return the token; raise PenultError."""
    if not _NAME.fullmatch(name):
        raise PenultError("TOKEN_NAME", "NAME must be 1 to 64 letters, digits or _.@-; choose another")
    token = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {right} {hashlib.sha256(token.encode()).hexdigest()}\n"
    try:
        # One write of one line, so that a server that reads meanwhile sees all of it or none.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(line)
    except OSError as error:
        raise PenultError("TOKENS_UNWRITABLE", f"{path} cannot be written ({error.strerror})") from error
    return token
