"""The list of files: links and pipes, what is remembered and what is not, and the time for many files."""

import hashlib
import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penult.export.data import file_index

Bytes = Callable[[int], bytes]
_MANY = 2_000
# For 100,000 files: 50 s and 10 s of one core. Measured: 20 s and 3 s, splits included (decoding is 9 in 10 of the first).
_BYTES_PER_FILE = 1500


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this test's answers are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "penult" / "photos"


@pytest.fixture
def root(tmp_path: Path, photo_bytes: Bytes) -> Path:
    """Two folders with three photos each, and time enough since they were written."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(photo_bytes(10 * label + number))
    _settle()
    return tmp_path / "photos"


def _settle() -> None:
    time.sleep(0.15)


def _find(root: Path) -> file_index.Listing:
    return file_index.find(root, {"cat": 0, "dog": 1})


def _check(root: Path) -> dict[str, str]:
    listing = _find(root)
    return dict(zip((file.path for file in listing.files), file_index.check(listing), strict=True))


def _digests(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.png") if p.is_file()
    }


def _rewrite(memory: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Change what is remembered, with a digest that fits."""
    (path,) = memory.iterdir()
    stored = json.loads(path.read_bytes().partition(b"\n")[2])
    change(stored["files"])
    body = json.dumps(stored).encode()
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def _make_known_by(memory: Path) -> None:
    """Put a digest of zeros in the place of every digest remembered: who gets it, was not read."""
    _rewrite(memory, lambda files: files.update({k: v.rpartition(" ")[0] + " " + "0" * 64 for k, v in files.items()}))


# -- what is found -----------------------------------------------------------------------------------------------------


def test_links_to_files_and_folders_are_followed(root: Path, tmp_path: Path, photo_bytes: Bytes):
    """A linked photo and the photos of a linked folder count as if they lay there."""
    (tmp_path / "store" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (tmp_path / "store" / name).write_bytes(photo_bytes(len(name)))
    (root / "cat" / "link.png").symlink_to(tmp_path / "store" / "a.png")
    (root / "cat" / "linked").symlink_to(tmp_path / "store")
    found = [file.path for file in _find(root).files if file.label == 0]
    assert found == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/link.png", "cat/linked/a.png", "cat/linked/deep/b.png"]


def test_a_folder_that_holds_itself_does_not_hang(root: Path):
    """Links back to a folder above are named and not entered; what else is there is found once."""
    (root / "cat" / "again").symlink_to(root)
    (root / "dog" / "self").symlink_to(".")
    (root / "dog" / "knot").symlink_to("knot")
    (root / "dog" / "knot.png").symlink_to("knot.png")
    listing = _find(root)
    assert ("dog/self", "a link back to a folder that holds it") in listing.left_out.closed
    assert ("cat/again/cat", "a link back to a folder that holds it") in listing.left_out.closed
    assert [path for path, _ in listing.broken] == ["cat/again/dog/knot.png", "dog/knot.png"]
    assert len(listing.files) == 3 + 3 + 3  # dog's once more, through the link in cat


def test_links_to_nowhere_and_pipes_are_broken(root: Path, tmp_path: Path):
    """What cannot be opened, or would never end, is named with the reason."""
    (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "cat" / "pipe.png")
    assert _find(root).broken == [("cat/gone.jpg", "No such file or directory"), ("cat/pipe.png", "not a file")]
    assert set(_check(root)) == set(_digests(root))


def test_a_huge_file_is_not_read(root: Path):
    """A file above every photo's size is refused by its size: this one would not fit into memory."""
    with open(root / "cat" / "huge.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert _check(root)["cat/huge.jpg"] == "IMAGE_TOO_MANY_BYTES"


def test_every_file_gets_its_own_digest(root: Path, photo_bytes: Bytes):
    """Digests and reasons come in the order of the files, also over more files than one thread takes at a time."""
    for number in range(300):
        data = b"no photo" if number % 7 == 0 else photo_bytes(number)
        (root / "cat" / f"more{number}.png").write_bytes(data)
    found, expected = _check(root), _digests(root)
    for path, answer in found.items():
        broken = (root / path).read_bytes() == b"no photo"
        assert answer == ("IMAGE_UNKNOWN_FORMAT" if broken else expected[path])
        assert file_index.is_digest(answer) != broken


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_unchanged_files_are_not_read_again(root: Path, memory: Path):
    """The second run takes its answers from the memory."""
    assert _check(root) == _digests(root)
    _make_known_by(memory)
    assert set(_check(root).values()) == {"0" * 64}


@pytest.mark.parametrize("times_kept", [True, False])
def test_a_changed_file_is_read_again(root: Path, memory: Path, photo_bytes: Bytes, times_kept: bool):
    """Other bytes of the same length are noticed, even if the file's date is set back; only that file is read."""
    path = root / "cat" / "0.png"
    before, data = path.stat(), path.read_bytes()
    changed = data[:-20] + bytes(20)
    _check(root)
    _make_known_by(memory)
    path.write_bytes(changed)
    if times_kept:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    found = _check(root)
    assert found.pop("cat/0.png") == "IMAGE_TRUNCATED"
    assert set(found.values()) == {"0" * 64}


def test_a_file_put_in_anothers_place_is_read_again(root: Path, memory: Path):
    """Renaming one photo over another gives it the other's name, not its digest."""
    _check(root)
    (root / "cat" / "0.png").rename(root / "cat" / "1.png")
    assert _check(root) == _digests(root)


def test_new_and_removed_files_change_the_memory(root: Path, memory: Path, photo_bytes: Bytes):
    """What is remembered follows the folder."""
    _check(root)
    (root / "cat" / "0.png").unlink()
    (root / "cat" / "new.png").write_bytes(photo_bytes(99))
    _settle()
    assert _check(root) == _digests(root)
    (path,) = memory.iterdir()
    assert set(json.loads(path.read_bytes().partition(b"\n")[2])["files"]) == set(_digests(root))


def test_broken_photos_are_remembered(root: Path, memory: Path):
    """Why a file is no photo is remembered too, as long as the file stays the same."""
    (root / "cat" / "bad.png").write_bytes(b"no photo")
    _settle()
    assert _check(root)["cat/bad.png"] == "IMAGE_UNKNOWN_FORMAT"
    _rewrite(memory, lambda files: files.update({k: v.replace("UNKNOWN_FORMAT", "SEEN") for k, v in files.items()}))
    assert _check(root)["cat/bad.png"] == "IMAGE_SEEN"


def test_a_file_just_written_is_not_remembered(root: Path, memory: Path, photo_bytes: Bytes):
    """A file that could still change within the step of its date is read again the next time."""
    (root / "cat" / "new.png").write_bytes(photo_bytes(99))
    _check(root)
    (path,) = memory.iterdir()
    assert "cat/new.png" not in json.loads(path.read_bytes().partition(b"\n")[2])["files"]


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data.replace(b"cat/0", b"cat/9"), lambda data: b"\xff" * 99,
     lambda data: hashlib.sha256(b"[]").hexdigest().encode() + b"\n[]",
     lambda data: hashlib.sha256(b"{}").hexdigest().encode() + b"\n{}"],
)  # fmt: skip
def test_a_damaged_memory_is_ignored_and_renewed(root: Path, memory: Path, damage: Callable[[bytes], bytes]):
    """Whatever stands in the file, answers are right, and the next run has them again."""
    _check(root)
    (path,) = memory.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert _check(root) == _digests(root)
    assert path.read_bytes() == good


def test_a_memory_of_another_version_is_ignored(root: Path, memory: Path, monkeypatch: pytest.MonkeyPatch):
    """What another Pillow found is found anew."""
    _check(root)
    _make_known_by(memory)
    (path,) = memory.iterdir()
    body = path.read_bytes().partition(b"\n")[2].replace(b'"made_by": "', b'"made_by": "1')
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert _check(root) == _digests(root)


def test_a_cache_folder_that_cannot_be_written_does_not_matter(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file in the place of the cache folder leaves the answers as they are, and stays."""
    (tmp_path / "blocked").write_bytes(b"mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert _check(root) == _check(root) == _digests(root)
    assert (tmp_path / "blocked").read_bytes() == b"mine"


def test_nothing_is_written_below_the_photos(root: Path, monkeypatch: pytest.MonkeyPatch):
    """A cache folder inside the folder of photos is not used, also where a link leads to it."""
    before = sorted(root.rglob("*"))
    for folder in (root, root / "cat", root / "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        _check(root)
    (root.parent / "link").symlink_to(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "link"))
    _check(root)
    assert sorted(root.rglob("*")) == before


def test_without_the_variable_the_memory_is_in_the_home_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """XDG_CACHE_HOME counts only if it is an absolute path, as its specification says; ~/.cache is the place else."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in (None, "", "relative"):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        _check(root)
        (path,) = (tmp_path / "home" / ".cache" / "penult" / "photos").iterdir()
        path.unlink()


def test_only_the_newest_folders_are_kept(root: Path, memory: Path):
    """The memory does not grow with every folder ever read."""
    _check(root)
    (own,) = memory.iterdir()
    for number in range(30):
        old = memory / f"{number}.json"
        old.write_bytes(b"x")
        os.utime(old, (number, number))
    own.unlink()
    _check(root)
    assert own in list(memory.iterdir())
    assert len(list(memory.iterdir())) == 16


# -- many files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, photo_bytes: Bytes) -> Iterator[Path]:
    """2,000 different photos in two folders."""
    root = tmp_path_factory.mktemp("many")
    for name in ("cat", "dog"):
        (root / name).mkdir()
    patterns = [photo_bytes(number) for number in range(20)]
    for number in range(_MANY):  # after its last chunk a PNG may hold anything
        data = patterns[number % 20] + number.to_bytes(4)
        (root / ("cat", "dog")[number % 2] / f"{number:06d}.png").write_bytes(data)
    yield root


def test_many_files_take_little_memory(many: Path):
    """All are told apart, and a file takes at most 1.5 KB of memory; bench/limits.py measures the time."""
    _settle()
    answers = file_index.check(_find(many))
    assert len({answer for answer in answers if file_index.is_digest(answer)}) == _MANY
    tracemalloc.start()
    try:
        file_index.check(_find(many))
        assert tracemalloc.get_traced_memory()[1] / _MANY < _BYTES_PER_FILE
    finally:
        tracemalloc.stop()
