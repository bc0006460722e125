"""Bundles made bad in every way known: each kind yields names and functions that spoil a copy of a good bundle.

Where a kind says "sealed", sizes and digests in the manifest are made right again, so that only later doors can tell.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.attacks import good_bundle

from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess

Spoil = Callable[[Path], object]
FILES = ("model.onnx", "svm.pkl", "golden.npz", "baseline.npz", "report/index.html")
PARSED = FILES[:4]


@dataclass(frozen=True)
class Mutant:
    """What is wrong, and a function that makes a copy of a good bundle so."""

    kind: str
    name: str
    spoil: Spoil


@dataclass(frozen=True)
class Parts:
    """What mutants are made of: good bundles, and a folder of secrets and canaries."""

    rbf: good_bundle.Good
    linear: good_bundle.Good
    other: good_bundle.Good
    outside: Path

    @property
    def secret(self) -> Path:
        """A file of the server's, which is no bundle's business."""
        return self.outside / "secret.bin"


def seal(folder: Path, **contents: bytes) -> None:
    """Write files, named as in model_onnx, and make the manifest right for them."""
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    files = dict(manifest.files)
    for word, data in contents.items():
        name = {name.replace(".", "_"): name for name in PARSED}[word]
        (folder / name).write_bytes(data)
        files[name] = FileEntry.of(data)
    (folder / "manifest.json").write_bytes(replace(manifest, files=files).to_json())


def sealed(name: str, data: bytes) -> Spoil:
    return lambda folder: seal(folder, **{name.replace(".", "_"): data})


def _raw(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _with_manifest(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "manifest.json").read_bytes())
        change(values)
        (folder / "manifest.json").write_text(json.dumps(values))

    return spoil


# -- bytes -------------------------------------------------------------------------------------------------------------


def flips(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """One bit of one file."""
    for round_ in range(12):
        for name in FILES:
            size = (parts.rbf.folder / name).stat().st_size
            at, bit = int(rng.integers(size)), 1 << int(rng.integers(8))
            yield f"{name} {round_}", _raw(name, lambda d, at=at, bit=bit: d[:at] + bytes([d[at] ^ bit]) + d[at + 1 :])


def lengths(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Files cut, lengthened and emptied; sealed where the format itself must tell."""
    for name in FILES:
        for what, change in _LENGTHS.items():
            yield f"{name} {what}", _raw(name, change)
            # Bytes behind a protobuf or a zip may be a field or a comment, and nobody has read the report.
            if name in PARSED and (what not in ("longer", "doubled") or name == "svm.pkl"):
                data = change((parts.rbf.folder / name).read_bytes())
                yield f"{name} {what}, sealed", sealed(name, data)


_LENGTHS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "doubled": lambda data: data * 2,
}


def swaps(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Files of another good bundle; sealed ones have right sizes, and only the goldens can tell."""
    for source, good in (("linear", parts.linear), ("another network's", parts.other)):
        for name in FILES[:4]:
            data = (good.folder / name).read_bytes()
            if data != (parts.rbf.folder / name).read_bytes():
                yield f"{name} of {source}", _raw(name, lambda _, data=data: data)
        manifest = (good.folder / "manifest.json").read_bytes()
        yield f"manifest of {source}", _raw("manifest.json", lambda _, data=manifest: data)
    for name in ("model.onnx", "svm.pkl", "golden.npz"):
        yield f"{name}, sealed", sealed(name, (parts.other.folder / name).read_bytes())
    yield "one file under another's name", sealed("svm.pkl", (parts.rbf.folder / "model.onnx").read_bytes())


# -- the manifest ------------------------------------------------------------------------------------------------------

_FIELDS: dict[str, tuple[Any, ...]] = {
    "format_version": (0, 2, "1", None, True, [], 1.5),
    "classes": ([], ["red"], ["red", "red", "blue"], ["red", "green"], ["a", "b", "c", "d"], "rgb", [1, 2, 3],
                ["red", "green", ""], None, ["red", "green", "\ud800"]),
    "preprocess": ({}, None, [], {"resize": 8, "crop": 16, "interpolation": "bilinear", "mean": [0] * 3, "std": [1] * 3}),
    "descriptor_length": (0, -1, 47, 49, 10**12, "48", 48.0, None, True),
    "default_scorer": ("knn", "", None, 7),
    "temperatures": ({}, {"dense": 0, "svm": 1}, {"dense": -1, "svm": 1}, {"dense": 1}, {"dense": "x", "svm": 1}, [],
                     {"dense": float("nan"), "svm": 1}, {"dense": float("inf"), "svm": 1}),
    "input_name": ("x", "", None, 7),
    "logits_name": ("descriptor", "x", []),
    "descriptor_name": ("logits", "x", {}),
    "scorers": ([], ["dense"], ["svm", "dense"], ["knn"], "svm", None),
    "logits_length": (0, 2, 4, -1, "3", 10**30),
    "fingerprint": ("0" * 64, "", None, 7),
    "architecture": (None, 7, ["x"]),
    "libraries": (None, [], "x"),
    "training": (None, [], "x"),
    "files": (None, [], {}, "x"),
}  # fmt: skip


def fields(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """A field of another type, out of range, or at odds with the others; and without it where it is needed."""
    for name, values in _FIELDS.items():
        for value in values:
            yield f"{name} = {json.dumps(value)[:40]}", _with_manifest(lambda v, n=name, x=value: v.update({n: x}))
        if name not in (
            "input_name",
            "logits_name",
            "descriptor_name",
            "scorers",
            "logits_length",
            "libraries",
            "training",
        ):
            yield f"without {name}", _with_manifest(lambda v, n=name: v.pop(n))
    for spec in (
        {"crop": 15},
        {"resize": 20},
        {"interpolation": "bicubic", "resize": 17},
        {"crop": 5000},
        {"crop": "16"},
    ):
        yield f"preprocess {spec}", _reseal(preprocess=spec)
    for text in ("", "{", "null", "[]", "[" * 100_000, "7" * 100_000, '{"format_version": 1}', "\0", "\ufeff{}"):
        yield f"manifest {text[:20]!r}", _raw("manifest.json", lambda _, text=text: text.encode())


def _reseal(preprocess: dict[str, Any]) -> Spoil:
    """Change how photos are cut; with the fingerprint that belongs to it, where it can be right at all."""

    def spoil(folder: Path) -> None:
        manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
        try:
            changed = replace(manifest, preprocess=Preprocess(**(asdict(manifest.preprocess) | preprocess)))
            (folder / "manifest.json").write_bytes(changed.to_json())
        except ValueError:
            _with_manifest(lambda values: values["preprocess"].update(preprocess))(folder)

    return spoil


def entries(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """What the manifest lists: absurd sizes, wrong digests, and names that lead out of the bundle."""
    for entry in (
        {"size": -1},
        {"size": 0},
        {"size": 10**15},
        {"size": "9"},
        {"sha256": "0" * 64},
        {"sha256": None},
        {},
    ):
        for name in ("svm.pkl", "report/index.html"):
            yield (
                f"{name} {entry}",
                _with_manifest(lambda v, n=name, e=entry: v["files"].update({n: v["files"][n] | e if e else {}})),
            )
    secret = FileEntry.of(parts.secret.read_bytes())
    names = ["../1/svm.pkl", "../../../secret.bin", str(parts.secret), "/etc/hostname", "report/../svm.pkl", "./svm.pkl",
             "report//index.html", "a\0b", "x" * 5000, "..", ".", "", "report", "\ud800", "~/x", "svm.pkl/", "C:\\x"]  # fmt: skip
    for name in names:
        listed = {"size": secret.size, "sha256": secret.sha256}
        yield f"lists {name[:20]!r}", _with_manifest(lambda v, n=name, e=listed: v["files"].update({n: e}))
    for name in FILES:
        yield f"does not list {name}", _with_manifest(lambda v, n=name: v["files"].pop(n))


# -- the file system ---------------------------------------------------------------------------------------------------


def places(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Links, pipes, sockets, devices and folders in the place of files, extra files, and missing ones."""
    for name in (*PARSED, "manifest.json", "report/index.html"):
        for what, put in _PLACES.items():
            yield f"{name} is a {what}", lambda folder, n=name, put=put: put(parts, folder / n)
    for extra in ("extra.txt", "report/x.html", ".hidden", "model.onnx.data", "__init__.py", "\udcff\n"):
        yield f"extra {extra!r}", lambda folder, extra=extra: (folder / extra).write_bytes(b"x")
    yield "folder is a link", _linked_folder(parts)
    yield "link to the secrets", lambda folder: (folder / "more").symlink_to(parts.outside)
    yield "link to itself", lambda folder: (folder / "more").symlink_to(folder)
    yield "extra pipe", lambda folder: os.mkfifo(folder / "pipe")
    yield "nothing at all", lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()]


def _link(parts: Parts, path: Path) -> None:
    path.rename(parts.outside / f"moved-{path.name}")
    path.symlink_to(parts.outside / f"moved-{path.name}")


def _link_to_secret(parts: Parts, path: Path) -> None:
    path.unlink()
    path.symlink_to(parts.secret)


def _hard_link(parts: Parts, path: Path) -> None:
    other = parts.outside / f"name-{path.name}"
    other.unlink(missing_ok=True)
    other.hardlink_to(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def _replaced(make: Callable[[Path], object]) -> Callable[[Parts, Path], None]:
    def put(parts: Parts, path: Path) -> None:
        path.unlink()
        make(path)

    return put


_PLACES: dict[str, Callable[[Parts, Path], None]] = {
    "link": _link,
    "hard link": _hard_link,
    "link to the secret": _link_to_secret,
    "link to /dev/zero": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "dangling link": _replaced(lambda path: path.symlink_to("nowhere")),
    "pipe": _replaced(os.mkfifo),
    "socket": _replaced(_socket),
    "folder": _replaced(Path.mkdir),
    "nothing": _replaced(lambda path: None),
}
if os.geteuid() == 0:  # the numbers of /dev/zero

    def _device(path: Path) -> None:
        try:
            os.mknod(path, 0o20666, os.makedev(1, 5))
        except PermissionError:  # in a container without that right
            path.symlink_to("/dev/zero")

    _PLACES["device"] = _replaced(_device)


def _linked_folder(parts: Parts) -> Spoil:
    def spoil(folder: Path) -> None:
        target = parts.outside / f"report-{folder.name}"
        (folder / "report").rename(target)
        (folder / "report").symlink_to(target)

    return spoil


KINDS = (flips, lengths, swaps, fields, entries, places)
