"""The trained model that tests share is made anew when a source changes, and once for all processes."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fixtures.trained import ROOT, cached, hash_of_sources


@pytest.mark.parametrize(
    "name",
    [
        "export/penult/export/report/templates/report.html",
        "service/penult/bundle/preprocess.py",
        "proto/penult/v1/penult_pb2.py",
        "locks/dev.txt",
        "tests/fixtures/serving.py",
    ],
)
def test_every_source_counts(name: str, tmp_path: Path):
    """A byte more in any file that a run may depend on gives another hash."""
    for part in ("export", "service", "proto", "locks", "tests/fixtures"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    assert hash_of_sources.__wrapped__(tmp_path) == hash_of_sources()
    with (tmp_path / name).open("ab") as file:
        file.write(b"#")
    assert hash_of_sources.__wrapped__(tmp_path) != hash_of_sources()


def test_it_is_made_once_and_whole(tmp_path: Path):
    """Several at a time get the same folder; a failed attempt and older sources leave nothing."""
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "weights").write_bytes(b"1")

    (tmp_path / "model-old").mkdir()
    with pytest.raises(ZeroDivisionError):
        cached("model", lambda folder: 1 / 0, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: cached("model", make, tmp_path), range(4)))
    assert len(made) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model.lock", *(folder.name for folder in folders)}
    assert (folders.pop() / "weights").read_bytes() == b"1"
