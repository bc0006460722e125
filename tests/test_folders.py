"""One walk over folders: learning, the clients and bench find the same photos, and leave out the same of the rest."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from penult.bench import photos as bench_photos
from penult.bench.settings import BenchError
from penult.cli.arguments import Refused, named_photos
from penult.cli.index import photo_item
from penult.client.batch_calls import photos_in
from penult.client.tools.photo_sources import Folder
from penult.export.data import file_index
from penult.folders.names import affixed_split_of, is_photo, kind_of, split_of
from penult.folders.walk import LeftOut, walk

_FOUND = ["a.JPG.png", "b/c.jfif", "b/n.heic", "b/o.TIF", "b/x.jpg/d.JPE", "b/z.webp", "e/again/c.jfif", "e/again/n.heic", "e/again/o.TIF",
          "e/again/x.jpg/d.JPE", "e/again/z.webp", "e/gone.jpg", "f.jpg"]  # fmt: skip


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """A folder with photos in many places, among all that cameras, systems and people leave beside them."""
    root = tmp_path / "photos"
    for name in ("a.JPG.png", "b/c.jfif", "b/x.jpg/d.JPE", "b/z.webp", "f.jpg", "b/@eaDir/c.jpg/SYNO.jpg", "__MACOSX/a.png",
                 "lost+found/1.jpg", "Thumbs.db", "b/Desktop.ini", ".hidden.jpg", ".Trash/1.jpg", "b/._c.jfif", "b/n.heic",
                 "b/o.TIF", "b/p.jxl", "b/q.JXL", "notes", "clip.mov"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    os.mkfifo(root / "b" / "pipe.png")
    (root / "e").mkdir()
    (root / "e" / "again").symlink_to(root / "b")
    (root / "e" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "e" / "loop").symlink_to(root / "e")
    (root / "b" / "pipe.jpg").symlink_to(root / "b" / "pipe.png")
    return root


def _lines(root: Path) -> list[str]:
    left_out = LeftOut()
    assert [path for path, _ in walk(root, left_out=left_out)] == _FOUND
    return left_out.lines()


def test_everyone_finds_the_same(nasty: Path):
    """The walk, `penult describe --out`, classify and index add, bench and learning agree, and wait for no pipe."""
    _lines(nasty)
    assert list(Folder(nasty).ids()) == _FOUND
    assert [str(path.relative_to(nasty)) for path in photos_in(nasty)] == _FOUND
    listing = file_index.find(nasty, {"b": 0, "e": 1})
    found = [file.path for file in listing.files] + [path for path, why in listing.broken if why != "not a file"]
    assert sorted(found) == [path for path in _FOUND if "/" in path]
    sent = sorted(data.decode() for data in bench_photos.read_folder(nasty, seed=0))
    assert sent == sorted(["a.JPG.png", *["b/c.jfif", "b/n.heic", "b/o.TIF", "b/x.jpg/d.JPE", "b/z.webp"] * 2, "f.jpg"])


def test_what_is_left_out_is_told_by_kind(nasty: Path, capsys: pytest.CaptureFixture[str]):
    """One line for each kind of thing: files to convert with the command, pipes, what systems add, loops."""
    lines = _lines(nasty)
    assert lines == [
        "4 JPEG XL files are left out; to make JPEGs with ImageMagick: find . -name '*.jxl' -exec mogrify -format jpg {} +",
        "1 video file is left out; to take single pictures: ffmpeg -i FILE -vf fps=1 FILE-%04d.jpg",
        "1 file is not JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC and left out: notes",
        "7 files and folders are left out that systems add: @eaDir (2), Desktop.ini (2), Thumbs.db (1) and 2 more",
        "4 photos are left out that cannot be read: b/pipe.jpg (not a file), b/pipe.png (not a file), "
        "e/again/pipe.jpg (not a file) and 1 more",
        "1 folder is left out that cannot be entered: e/loop (a link back to a folder that holds it)",
    ]
    assert len(named_photos(["one.jpg", str(nasty)])) == 1 + len(_FOUND)
    assert capsys.readouterr().err.splitlines() == [f"note: {nasty}: {line}" for line in lines]


def test_a_folder_without_photos_says_what_it_holds(tmp_path: Path):
    """Where there is nothing to send, one line says what there is instead, for clients and for bench."""
    for name in ("1.jxl", "2.jxl", "@eaDir/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    told = "; 2 JPEG XL files are left out; to make JPEGs with ImageMagick: "
    with pytest.raises(Refused) as caught:
        named_photos([str(tmp_path)])
    assert f"holds no JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC file{told}" in caught.value.message
    with pytest.raises(BenchError) as refused:
        bench_photos.read_folder(tmp_path, seed=0)
    assert told in str(refused.value)


def test_a_walk_is_lazy(tmp_path: Path):
    """What comes first is yielded before later folders are opened: a million names are never in memory."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    found = walk(tmp_path)
    assert next(found).path == "a/1.jpg"
    (tmp_path / "b" / "2.jpg").write_bytes(b"x")
    assert [path for path, _ in found] == ["b/2.jpg"]


def test_labels_of_folders_are_in_one_form(tmp_path: Path):
    """A folder's accented name labels its photos in NFC, whichever way the file system spells it; paths stay."""
    folder = tmp_path / "pe\u0301che\u0301"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"x")
    (wanted,) = Folder(tmp_path).items(0)
    item = photo_item(photos_in(tmp_path)[0], Namespace(what=tmp_path, keep=[]))
    assert wanted.label == item.label == "p\u00e9ch\u00e9"
    assert (wanted.photo, item.id) == (folder / "1.jpg", "pe\u0301che\u0301/1.jpg")


@pytest.mark.parametrize(
    ("name", "part"),
    [("train", "train"), ("TRAINING", "train"), ("Valid", "val"), ("validation", "val"), ("Testing", "test"), ("test", "test"),
     ("trains", None), ("contest", None), ("", None)],
)  # fmt: skip
def test_splits_by_name(name: str, part: str | None):
    """Names of splits are known in any case; names that only contain one are none."""
    assert split_of(name) == part


@pytest.mark.parametrize(
    ("name", "found"),
    [("seg_train", ("seg *", "train")), ("Test-Images", ("* images", "test")), ("my.val.set", None), ("train_test", None),
     ("test", None), ("latest_photos", None)],
)  # fmt: skip
def test_splits_with_affixes(name: str, found: tuple[str, str] | None):
    """What stands beside a split's name pairs it with its like; names of two splits, or with one inside, are none."""
    assert affixed_split_of(name) == found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.JXL", "JPEG XL"), ("a.tar.gz", "archive"), ("a.b.psd", "Photoshop"), ("a.gzip", None), ("psd", None), ("a.NEF", "camera RAW")],
)  # fmt: skip
def test_kinds_by_ending(name: str, kind: str | None):
    """The last ending names the kind, in any case."""
    found = kind_of(name)
    assert (found.name if found else None) == kind
    assert not is_photo(name)
