"""Rows by photo on disk: what is found again, and what makes a file unusable."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from penult.export.data import row_cache
from penult.export.data.row_cache import RowCache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this test's rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "penult" / "rows"


def _key(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def _keep(first: int, count: int) -> None:
    rows = np.arange(first, first + count, dtype=np.float32)[:, None] * [1, 10, 100]
    RowCache("rows", "net", 3).keep({_key(first + n): n for n in range(count)}, rows.astype(np.float32))


def _known() -> list[int]:
    cache = RowCache("rows", "net", 3)
    found = {number: cache.get(_key(number)) for number in range(9)}
    assert all(row is None or row.tolist() == [n, 10 * n, 100 * n] for n, row in found.items())
    return [number for number, row in found.items() if row is not None]


def test_kept_rows_are_found_again():
    """Rows of an earlier run come back bit for bit, and those of a run before it stay."""
    _keep(0, 3)
    _keep(2, 3)
    assert _known() == [0, 1, 2, 3, 4]


def test_other_maker():
    """Rows of another network are not returned."""
    _keep(0, 3)
    assert RowCache("rows", "other", 3).get(_key(0)) is None


@pytest.mark.parametrize("at", [0, 20, 100, -40, -1])
def test_damage(folder: Path, at: int):
    """A file with one changed byte, or without its end, has no rows."""
    _keep(0, 3)
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert _known() == []
    data[at] ^= 1
    path.write_bytes(data[:at] if at else b"")
    assert _known() == []


def test_size_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A full file keeps the rows of the last run, and drops older ones; only the newest files stay."""
    monkeypatch.setattr(row_cache, "_MAX_BYTES", 4 * (32 + 12))
    _keep(0, 3)
    _keep(5, 3)
    assert _known() == [0, 5, 6, 7]
    monkeypatch.setattr(row_cache, "_KEPT", 1)
    RowCache("rows", "other", 3).keep({_key(0): 0}, np.zeros((1, 3), np.float32))
    assert len(list(folder.iterdir())) == 1


def test_unwritable(folder: Path):
    """A cache folder that cannot be written costs time only."""
    folder.parent.mkdir()
    folder.write_text("")
    _keep(0, 3)
    assert _known() == []
