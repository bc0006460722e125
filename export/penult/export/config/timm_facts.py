"""Facts about networks of timm, computed once for each name and then kept in the user's cache folder.

Only timm knows its networks, and it imports PyTorch. So if PyTorch is not loaded yet, a process of its own computes the
facts of a name that is not in the cache. Options are then rejected before this process imports PyTorch, as for others.
"""

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from penult.bundle.preprocess import Preprocess
from penult.export.cache_folder import cache_folder, forget_oldest, replace_file
from penult.export.errors import SettingsError
from penult.extras import how_to_install

PREFIX = "timm/"
# What decides on the facts; a change of one of these files makes all facts anew.
_SOURCES = ("config/known_networks.py", "networks/stage_cutting.py", "networks/timm_networks.py")
_KEPT = 5000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)?")
_COMPUTES = "penult.export.networks.timm_networks"


_Network = TypeVar("_Network")
# How this process computes the facts of a name if it has PyTorch loaded, {"network": …} or {"refused": …}.
in_process: list[Callable[[str], dict[str, Any]]] = []


def facts(name: str, kind: Callable[..., _Network]) -> _Network:
    """Return the network `timm/NAME`; raise SettingsError if it cannot be used, or if timm is not installed."""
    found = answer(name)
    if refused := found.get("refused"):
        raise SettingsError("ARCHITECTURE", f"--arch {PREFIX}{name} {refused}")
    return from_json(found["network"], kind)


@cache
def answer(name: str) -> dict[str, Any]:
    """Return the fields of a network, or why it is refused, from the cache or computed now."""
    version = installed()
    if not _NAME.fullmatch(name):
        return {"refused": "is not a name of timm, such as timm/resnet18 or timm/resnet18.a1_in1k"}
    folder = cache_folder("timm-networks")
    path = folder / f"{version}-{_code()}-{name}.json" if folder else None
    try:
        if path:
            kept: dict[str, Any] = json.loads(path.read_bytes())
            return kept
    except (OSError, ValueError):
        pass  # not there yet, or damaged
    found = in_process[0](name) if in_process else _in_other_process(name)
    if path and folder and "unknown" not in found:
        try:
            replace_file(path, [json.dumps(found).encode()])
            forget_oldest(folder, _KEPT)
        except OSError:
            pass  # a full or read-only disk costs the time of computing it again
    return found


@cache
def _code() -> str:
    """Return a short digest of the code that computes facts."""
    below = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((below / source).read_bytes() for source in _SOURCES)).hexdigest()[:12]


def installed() -> str:
    """Return the version of timm; raise SettingsError if it is not installed."""
    try:
        return importlib.metadata.version("timm")
    except importlib.metadata.PackageNotFoundError:
        raise SettingsError(
            "ARCHITECTURE", f"--arch {PREFIX}NAME needs timm: {how_to_install('export,timm')}"
        ) from None


def to_json(network: Any) -> dict[str, Any]:
    """Return the fields of a Network."""
    return asdict(network)


def from_json(fields: dict[str, Any], kind: Callable[..., _Network]) -> _Network:
    """Return the Network with these fields."""
    values = {key: _tuples(value) for key, value in fields.items() if key != "preprocess"}
    spec = {key: _tuples(value) for key, value in fields["preprocess"].items()}
    return kind(**values, preprocess=Preprocess(**spec))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _in_other_process(name: str) -> dict[str, Any]:
    # -P: files of the folder that the user is in are not imported.
    done = subprocess.run([sys.executable, "-P", "-m", _COMPUTES, name], capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise SettingsError(
            "ARCHITECTURE", f"--arch {PREFIX}{name}: timm cannot be used ({last}); {how_to_install('export,timm')}"
        ) from None
