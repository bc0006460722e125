"""Reading bundles: a whole one is read, anything else is refused with its reason and nothing of it is used."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penult.bundle.errors import BundleError, BundleNotFound
from penult.bundle.naming import versions
from penult.bundle.reader import read_bundle, read_manifest

Edit = Callable[[Callable[[dict[str, Any]], None]], None]


def _refused(model_folder: Path, version: int | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(model_folder, version)
    assert "\n" not in caught.value.message
    return caught.value.reason


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_bundle_is_read(model_folder: Path, trained: Any):
    """Name, version and the files' bytes are those on disk, wherever the bundle was copied to."""
    bundle = read_bundle(model_folder)
    assert (bundle.name, bundle.version) == ("digits", 1)
    assert bundle.onnx == (trained.folder / "model.onnx").read_bytes()
    assert bundle.svm == (trained.folder / "svm.pkl").read_bytes()
    assert len(bundle.goldens.images) == 8
    assert bundle.manifest.classes == tuple("0123456789")


def test_a_flipped_bit_in_any_file_is_refused(model_folder: Path, bundle_folder: Path):
    """One wrong bit in any listed file, at its start, middle or end, refuses the bundle."""
    files = [path for path in _files(bundle_folder) if path.name != "manifest.json"]
    assert len(files) >= 8
    for path in files:
        for at in (0, path.stat().st_size // 2, -1):
            _flip(path, at)
            assert _refused(model_folder) == "FILE_DIGEST", path
            _flip(path, at)
    read_bundle(model_folder)


def test_a_flipped_bit_in_a_digest_is_refused(model_folder: Path, edit_manifest: Edit):
    """A manifest that describes another file is refused, also where that file does not decide the fingerprint."""
    edit_manifest(lambda values: values["files"]["metrics.json"].update(sha256="0" * 64))
    assert _refused(model_folder) == "FILE_DIGEST"


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_refused(model_folder: Path, bundle_folder: Path, change: int):
    """A file that is a byte shorter or longer than listed is refused."""
    path = bundle_folder / "history.csv"
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change < 0 else data + b"\n")
    assert _refused(model_folder) == "FILE_DIGEST"


@pytest.mark.parametrize("size", [-1, 0, 10**12, 2**63 - 1, 10**40])
def test_a_listed_size_is_not_believed(model_folder: Path, edit_manifest: Edit, size: int):
    """A manifest that lists an absurd size is refused, and no memory is asked for because of it."""
    edit_manifest(lambda values: values["files"]["svm.pkl"].update(size=size))
    assert _refused(model_folder) in ("FILE_DIGEST", "MANIFEST_INVALID")


@pytest.mark.parametrize("name", ["extra.txt", "report/extra.html", ".hidden", "model.onnx.data"])
def test_an_extra_file_is_refused(model_folder: Path, bundle_folder: Path, name: str):
    """A file that the manifest does not list is refused, wherever it stands."""
    (bundle_folder / name).write_bytes(b"x")
    assert _refused(model_folder) == "FILE_UNLISTED"


def test_a_file_with_a_name_that_is_no_text_is_refused(model_folder: Path, bundle_folder: Path):
    """An extra file whose name is not UTF-8 is refused with a line that can be printed."""
    Path(os.fsdecode(bytes(bundle_folder) + b"/\xff\n")).write_bytes(b"x")
    with pytest.raises(BundleError) as caught:
        read_bundle(model_folder)
    assert caught.value.reason == "FILE_UNLISTED"
    assert caught.value.message.encode().isascii()


def test_a_missing_file_is_refused(model_folder: Path, bundle_folder: Path):
    """Every listed file must be there."""
    for path in _files(bundle_folder):
        if path.name != "manifest.json":
            moved = path.rename(model_folder / "aside")
            assert _refused(model_folder) == "FILE_MISSING", path
            moved.rename(path)


def test_a_symbolic_link_is_refused(model_folder: Path, bundle_folder: Path):
    """A link is refused although the file it leads to is the right one."""
    for name in ("svm.pkl", "manifest.json", "report/index.html"):
        moved = (bundle_folder / name).rename(model_folder / "aside")
        (bundle_folder / name).symlink_to(moved)
        assert _refused(model_folder) == "FILE_LINK", name
        moved.replace(bundle_folder / name)


def test_a_hard_link_is_refused(model_folder: Path, bundle_folder: Path):
    """A second name for a file, through which it could be changed later, is refused."""
    for name in ("model.onnx", "manifest.json"):
        (model_folder / "aside").hardlink_to(bundle_folder / name)
        assert _refused(model_folder) == "FILE_LINK", name
        (model_folder / "aside").unlink()
    read_bundle(model_folder)


def test_a_linked_folder_inside_a_bundle_is_refused(model_folder: Path, bundle_folder: Path):
    """A folder of the bundle that leads elsewhere is refused, although its files are right."""
    moved = (bundle_folder / "report").rename(model_folder / "aside")
    (bundle_folder / "report").symlink_to(moved)
    assert _refused(model_folder) == "FILE_UNLISTED"


def test_an_extra_linked_folder_is_refused(model_folder: Path, bundle_folder: Path, tmp_path: Path):
    """Nor may a link to some other folder stand beside the listed files."""
    (bundle_folder / "elsewhere").symlink_to(tmp_path)
    assert _refused(model_folder) == "FILE_UNLISTED"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["svm.pkl", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_plain_file_is_refused(
    model_folder: Path, bundle_folder: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """A pipe, a socket or a folder in the place of a file is refused, and nothing waits for it."""
    (bundle_folder / name).unlink()
    monkeypatch.chdir(bundle_folder)  # the path of a socket must be short
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "folder":
        Path(name).mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    assert _refused(model_folder) in ("FILE_LINK", "FILE_MISSING", "MANIFEST_MISSING")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "./model.onnx", "report/../model.onnx", "\0", "x" * 5000]
)
def test_a_listed_name_never_leads_out(model_folder: Path, edit_manifest: Edit, name: str):
    """Names with '..', absolute ones and other spellings of a path are refused, and nothing outside is opened."""
    (model_folder / "secret").write_bytes(b"secret")
    edit_manifest(lambda values: values["files"].update({name: values["files"]["svm.pkl"]}))
    assert _refused(model_folder) == "FILE_MISSING"


@pytest.mark.parametrize("keep", [0, 1, 500, -2])
def test_a_truncated_manifest_is_refused(model_folder: Path, bundle_folder: Path, keep: int):
    """A manifest that ends early is refused."""
    path = bundle_folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    assert _refused(model_folder) == "MANIFEST_INVALID"


def test_a_folder_without_a_manifest_is_no_bundle(model_folder: Path, bundle_folder: Path):
    """The manifest is written last, so without it the bundle was never finished."""
    (bundle_folder / "manifest.json").unlink()
    assert _refused(model_folder) == "MANIFEST_MISSING"


def test_a_manifest_may_be_signed(model_folder: Path, bundle_folder: Path):
    """A signature beside the manifest is not listed in it, and allowed."""
    (bundle_folder / "manifest.sig").write_bytes(b"x" * 64)
    assert read_bundle(model_folder).version == 1


def test_goldens_that_are_no_arrays_are_refused(model_folder: Path, bundle_folder: Path, edit_manifest: Edit):
    """Contents are checked too, where the digests are right."""
    from penult.bundle.manifest import FileEntry

    (bundle_folder / "golden.npz").write_bytes(b"no zip")
    entry = FileEntry.of(b"no zip")
    edit_manifest(lambda values: values["files"].update({"golden.npz": vars(entry)}))
    assert _refused(model_folder) == "GOLDEN_INVALID"


def test_the_newest_version_is_read_by_default(model_folder: Path, bundle_folder: Path):
    """Versions are compared as numbers, and a bundle copied to a new number is that version."""
    for version in ("2", "10"):
        shutil.copytree(bundle_folder, model_folder / version)
    assert versions(model_folder) == [1, 2, 10]
    assert read_bundle(model_folder).version == 10
    assert read_bundle(model_folder, 2).version == 2


def test_other_names_are_no_versions(model_folder: Path):
    """Half-written folders, files and other names are not taken for versions."""
    for name in (".writing-abc", "02", "latest", "0"):
        (model_folder / name).mkdir()
    (model_folder / "7").write_bytes(b"a file")
    assert versions(model_folder) == [1]
    assert versions(model_folder / "absent") == []


def test_what_is_not_there_is_said_so(model_folder: Path, tmp_path: Path):
    """An absent model, an empty folder and an absent version each have their reason."""
    (tmp_path / "empty").mkdir()
    for folder, version, reason in (
        (tmp_path / "absent", None, "MODEL_NOT_FOUND"),
        (tmp_path / "empty", None, "MODEL_NOT_FOUND"),
        (model_folder, 2, "VERSION_NOT_FOUND"),
        (model_folder, 0, "VERSION_NOT_FOUND"),
    ):
        assert _refused(folder, version) == reason
        with pytest.raises(BundleNotFound):
            read_bundle(folder, version)


def test_the_folder_must_name_a_model(model_folder: Path):
    """A folder whose name is no model name is refused, good as its contents may be."""
    assert _refused(model_folder.rename(model_folder.parent / "my digits")) == "MODEL_NAME"


def test_the_manifest_alone_can_be_read(bundle_folder: Path):
    """Listing models needs no network: the manifest is read by itself."""
    values = json.loads((bundle_folder / "manifest.json").read_bytes())
    assert read_manifest(bundle_folder).fingerprint == values["fingerprint"]
