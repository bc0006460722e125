"""The small file beside a label file: lock, skipped photos, and what the label file has no columns for.

It only grows, a line of JSON for each change. If it is deleted, the labels are complete all the same.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from penult.folders.names import printable
from penult.label import disk
from penult.label.errors import LabelFileError

_END = ".penult"


class SideFile:
    """The file beside one label file, which this process has alone.

    Attributes:
        has_lock: False if the file system has no locks, so that a second process would not be refused.
        skipped: The photos that were left.
        notes: For each photo what the label file cannot hold: "picked", "guess", and "label", to know a cut-off row by.
        rows: The other columns of rows that were removed, to come back with the photo's next label.
    """

    def __init__(self, beside: Path) -> None:
        """Open or create it, and take the lock; raise LabelFileError if another process has it, or OSError."""
        path = beside.with_name(beside.name + _END)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self.skipped: set[str] = set()
        self.notes: dict[str, dict[str, str]] = {}
        self.rows: dict[str, dict[str, str]] = {}
        try:
            self._read()
            self._take_lock(beside)
            disk.sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def _take_lock(self, beside: Path) -> None:
        try:
            self.has_lock = disk.lock(self._file)
        except BlockingIOError as error:
            holder = f" (process {self._process})" if self._process else ""
            raise LabelFileError(
                "LABEL_FILE_LOCKED",
                f"{printable(str(beside))} is open in another penult label{holder}; use its page, or stop it",
            ) from error
        # What the process before wrote between our reading and its end.
        self._read()
        self.add([{"process": os.getpid()}])

    def _read(self) -> None:
        self._process = 0
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read()
        self._needs_end = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut off by a power failure
                continue
            if isinstance(record, dict):
                self._apply(record)

    def _apply(self, record: Mapping[str, Any]) -> None:
        image = record.get("image")
        if isinstance(process := record.get("process"), int):
            self._process = process
        if not isinstance(image, str):
            return
        if "skipped" in record:
            (self.skipped.add if record["skipped"] else self.skipped.discard)(image)
        if isinstance(row := record.get("row"), dict):
            self.rows[image] = {str(name): str(value) for name, value in row.items()}
        if "label" in record:
            self.notes[image] = {name: str(record.get(name, "")) for name in ("label", "picked", "guess")}

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write changes, and wait until they are on the disk; raise OSError, and then nothing has changed."""
        records = list(records)
        if not records:
            return
        lines = "".join(json.dumps(record) + "\n" for record in records)
        disk.append_to(self._file, (b"\n" if self._needs_end else b"") + lines.encode())
        self._needs_end = False
        for record in records:
            self._apply(record)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
