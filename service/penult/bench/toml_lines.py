"""Sets a few keys of a TOML file and leaves every other line, and every comment, as it was."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penult.bench.settings import BenchError


def read_toml(path: Path) -> dict[str, Any]:
    """Return what the file holds, nothing where there is none. Raises BenchError."""
    try:
        return tomllib.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise BenchError(f"--config {path}: {error}") from error


def write_keys(path: Path, values: Mapping[str, int | float | str], note: str) -> bool:
    """Set top-level keys in the file, and return whether it has changed. Raises BenchError.

    Where there is none it is made, with `note` as its first line: without keys it would be empty, and say nothing.
    """
    if not values and path.exists():
        return False
    wanted = read_toml(path) | dict(values)
    text = with_keys(path.read_text() if path.exists() else f"# {note}\n", values)
    try:
        if tomllib.loads(text) != wanted:
            raise ValueError("its layout is too unusual to be edited")
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text)
        os.replace(temporary, path)  # noqa: PTH105 - whole or not at all
    except (OSError, ValueError) as error:
        lines = "; ".join(f"{key} = {_literal(value)}" for key, value in values.items())
        raise BenchError(f"--config {path}: {error}; set this by hand: {lines}") from error
    return True


def with_keys(text: str, values: Mapping[str, int | float | str]) -> str:
    """Return the text with these top-level keys set: in their line where they have one, else above the first table."""
    lines = text.splitlines()
    end = next((n for n, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    new = []
    for key, value in values.items():
        pattern = re.compile(rf"""(\s*["']?{re.escape(key)}["']?\s*=\s*)("[^"]*"|'[^']*'|[^#\s]+)(.*)""")
        found = next((n for n in range(end) if pattern.fullmatch(lines[n])), None)
        if found is None:
            new.append(f"{key} = {_literal(value)}")
        else:
            lines[found] = pattern.sub(rf"\g<1>{_literal(value)}\g<3>", lines[found])
    return "\n".join([*lines[:end], *new, *lines[end:]]) + "\n"


def _literal(value: int | float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
