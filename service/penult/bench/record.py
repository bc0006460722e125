"""A report as JSON and as files: bench.json, and bench.png if matplotlib is installed."""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penult.bench.measure import Report
from penult.bench.settings import BenchError
from penult.console import say
from penult.extras import how_to_install


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values: settings, machine, model and numbers, without the rows."""
    # asdict would copy each row, of which there may be a million.
    numbers = plain(dataclasses.replace(report, rows=()))
    del numbers["rows"]
    return {"date": now(), "machine": machine(), **numbers}


def plain(value: Any) -> Any:
    """Return a dataclass for JSON, with paths as text and six digits, without what repr() hides."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr})
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def now() -> str:
    """Return the date and time, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return the properties of the sending machine that the numbers depend on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "grpcio": importlib.metadata.version("grpcio"),
        "penult": importlib.metadata.version("penult"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write(folder: Path, name: str, numbers: Mapping[str, Any], draw: Callable[[], bytes]) -> list[Path]:
    """Write NAME.json, and NAME.png from `draw` if matplotlib is installed; return the files. Raises BenchError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{name}.json"]
        written[0].write_text(json.dumps(numbers, indent=2) + "\n")
        if importlib.util.find_spec("matplotlib"):
            written.append(folder / f"{name}.png")
            written[1].write_bytes(draw())
        else:
            say(f"no {name}.png: the picture needs matplotlib: {how_to_install('bench')}")
    except OSError as error:
        raise BenchError(f"--out {folder}: {error.strerror}; name a folder that can be written") from error
    return written


def check_folder(folder: Path | None) -> None:
    """Create the folder before anything is measured. Raises BenchError if that fails."""
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"--out {folder}: {error.strerror}; name a folder that can be written") from error
