"""Set keys in a configuration file of `penult serve`; comments and layout stay."""

import os
from collections.abc import Mapping
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from penult.bench.settings import BenchError


def write_keys(path: Path, values: Mapping[str, int | float | str], note: str) -> bool:
    """Set top-level keys of a TOML file.

    Args:
        path: The file. If it does not exist, it is created.
        values: The keys and their values.
        note: First line of a new file, which may have no keys.

    Returns:
        True if the file has changed.

    Raises:
        BenchError: The file is not TOML, or it cannot be read or written. The file is unchanged.
    """
    if not values and path.exists():
        return False
    try:
        document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document().add(tomlkit.comment(note))
        document.update(values)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(tomlkit.dumps(document))
        os.replace(temporary, path)  # noqa: PTH105 - atomic
    except (OSError, ValueError, TOMLKitError) as error:
        lines = "; ".join(f"{key} = {tomlkit.item(value).as_string()}" for key, value in values.items())
        raise BenchError(f"--config {path}: {error}; set this by hand: {lines}") from error
    return True
