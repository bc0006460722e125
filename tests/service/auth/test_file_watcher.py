"""Files that change while the server runs: read when they hold still, and never at the cost of what was good."""

from pathlib import Path

import pytest

from penult.bundle.errors import PenultError
from penult.service.auth.file_watcher import REFUSED, TAKEN, WatchedFile


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files that belong together."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_text("1")
    return paths


@pytest.fixture
def told() -> list[str]:
    """What was told of reading them."""
    return []


@pytest.fixture
def followed(files, told) -> WatchedFile[str]:
    """Both texts in a row; equal or nothing."""

    def read() -> str:
        one, two = (path.read_text() for path in files)
        if one == "bug":
            raise ZeroDivisionError
        if one != two:
            raise PenultError("UNEQUAL", "they differ")
        return one + two

    return WatchedFile("both", files, read, told.append)


def test_two_files_are_read_once_both_are_there(followed, files, told):
    """Between the first and the second of two files, nothing is read; then both are."""
    files[0].write_text("22")
    followed.check()
    files[1].write_text("22")
    followed.check()
    assert (followed.value, told) == ("11", [])
    followed.check()
    assert (followed.value, told) == ("2222", [TAKEN])
    followed.check()
    assert told == [TAKEN]


def test_whoever_cannot_wait_reads_at_once(followed, files, told):
    """An eager look takes what is there, and says once what is wrong with it."""
    files[0].write_text("333")
    followed.check(force=True)
    followed.check(force=True)
    assert (followed.value, told) == ("11", [REFUSED])
    files[1].write_text("333")
    followed.check(force=True)
    assert (followed.value, told) == ("333333", [REFUSED, TAKEN])


def test_nothing_ends_it(followed, files, told):
    """A file that is gone, and a bug in reading, change nothing; the next good one is taken."""
    files[0].unlink()
    followed.check(force=True)
    files[0].write_text("bug")
    followed.check(force=True)
    assert (followed.value, told) == ("11", [REFUSED, REFUSED])
    for path in files:
        path.write_text("4444")
    followed.check(force=True)
    assert followed.value == "44444444"


def test_links_are_followed(followed, files, told, tmp_path):
    """As Kubernetes does it: the files are links, and what they lead to is swapped."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, text in ((old, "5"), (new, "66")):
        folder.mkdir()
        for path in files:
            (folder / path.name).write_text(text)
    link = tmp_path / "data"
    link.symlink_to(old)
    for path in files:
        path.unlink()
        path.symlink_to(link / path.name)
    followed.check(force=True)
    swapped = tmp_path / "swapped"
    swapped.symlink_to(new)
    swapped.rename(link)
    followed.check()
    followed.check()
    assert followed.value == "6666"
