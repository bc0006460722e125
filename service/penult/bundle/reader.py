"""Read a bundle: each file once, with signature, sizes and digests verified before anything is parsed."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from penult.bundle.baseline import Baseline
from penult.bundle.class_map import LinearHead
from penult.bundle.errors import BundleError, BundleNotFound
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import (
    BASELINE_NAME,
    DENSE_HEAD_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    SVM_NAME,
    FileEntry,
    Manifest,
)
from penult.bundle.naming import meant_model, model_name, versions
from penult.bundle.signature import ANYBODY, SIGNATURE_BYTES, SIGNATURE_NAME, Trust

_MANIFEST_MAX_BYTES = 16 << 20
_PARSED = (MODEL_NAME, SVM_NAME, GOLDEN_NAME, BASELINE_NAME, DENSE_HEAD_NAME)


@dataclass(frozen=True)
class Bundle:
    """A bundle with verified digests, and the bytes that were verified.

    `signer` is the id of the trusted key that signed it, "" without one. `is_signed` is True if it holds a signature,
    trusted or not.
    """

    name: str
    version: int
    manifest: Manifest
    onnx: bytes
    svm: bytes | None
    goldens: Goldens
    baseline: Baseline | None = None
    signer: str = ""
    is_signed: bool = False
    # What class maps of the dense scorer are made with; None if it has none.
    dense_head: LinearHead | None = None


@dataclass(frozen=True)
class SignedManifest:
    """manifest.json with its bytes, whether it has a signature, and the id of the trusted key that made it."""

    manifest: Manifest
    data: bytes
    is_signed: bool
    signer: str


def read_bundle(model_folder: Path, version: int | None = None, trust: Trust = ANYBODY) -> Bundle:
    """Read models/NAME/VERSION (by default the newest) into memory; raise BundleError."""
    name = model_name(model_folder)
    chosen = choose_version(model_folder, version)
    folder = model_folder / str(chosen)
    signed = read_signed_manifest(folder, trust)
    contents = _read_listed(folder, signed.manifest)
    return Bundle(
        name=name,
        version=chosen,
        manifest=signed.manifest,
        onnx=contents[MODEL_NAME],
        svm=contents.get(SVM_NAME),
        goldens=Goldens.from_bytes(contents[GOLDEN_NAME]),
        # Bundles of before have none.
        baseline=Baseline.from_bytes(contents[BASELINE_NAME], signed.manifest) if BASELINE_NAME in contents else None,
        signer=signed.signer,
        is_signed=signed.is_signed,
        dense_head=_dense_head(contents.get(DENSE_HEAD_NAME), signed.manifest),
    )


def _dense_head(data: bytes | None, manifest: Manifest) -> LinearHead | None:
    if data is None or manifest.class_maps is None:
        return None
    return LinearHead.from_bytes(data, len(manifest.classes), manifest.class_maps.shape[0])


def choose_version(model_folder: Path, version: int | None) -> int:
    """Return the version asked for, or the newest one, of a folder like models/NAME; raise BundleNotFound."""
    present = versions(model_folder)
    if not present:
        nothing = f"{model_folder} holds no version (folders 1, 2, …); make one with penult train"
        raise BundleNotFound("MODEL_NOT_FOUND", meant_model(model_folder) or nothing)
    chosen = present[-1] if version is None else version
    if chosen not in present:
        raise BundleNotFound(
            "VERSION_NOT_FOUND", f"{model_folder} has no version {chosen}; it has {', '.join(map(str, present))}"
        )
    return chosen


def read_manifest(folder: Path) -> Manifest:
    """Read models/NAME/VERSION/manifest.json; raise BundleError."""
    return read_signed_manifest(folder, ANYBODY).manifest


def read_signed_manifest(folder: Path, trust: Trust) -> SignedManifest:
    """Read models/NAME/VERSION/manifest.json and verify its signature before parsing it; raise BundleError."""
    try:
        data = _read_plain(folder / MANIFEST_NAME, _MANIFEST_MAX_BYTES)
    except FileNotFoundError:
        raise BundleError(
            "MANIFEST_MISSING", f"{folder} has no {MANIFEST_NAME}, so it is no finished bundle; train or copy it again"
        ) from None
    signature = _read_signature(folder)
    signer = trust.signer(data, signature, folder)
    return SignedManifest(Manifest.from_json(data), data, signature is not None, signer)


def _read_signature(folder: Path) -> bytes | None:
    try:
        return _read_plain(folder / SIGNATURE_NAME, SIGNATURE_BYTES)
    except FileNotFoundError:
        return None


def read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """Read one file that the manifest of models/NAME/VERSION lists; raise BundleError where it is another one."""
    entry = manifest.files[name]
    data = _read_plain(folder / name, entry.size)
    if FileEntry.of(data) != entry:
        raise BundleError(
            "FILE_DIGEST", f"{folder / name} is not the file that the manifest describes; restore the bundle"
        )
    return data


def _read_listed(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Check every file of the folder against the manifest; return the bytes of those that will be parsed."""
    present = _files(folder)
    listed = set(manifest.files)
    if unlisted := sorted(present - listed):
        raise BundleError(
            "FILE_UNLISTED", f"{folder} holds {unlisted[0]!r}, which its manifest does not list; remove it"
        )
    if missing := sorted(listed - present):
        raise BundleError(
            "FILE_MISSING", f"{folder} lacks {missing[0]!r}, which its manifest lists; restore the bundle"
        )
    kept = {}
    for name in manifest.files:
        data = read_file(folder, manifest, name)
        if name in _PARSED:
            kept[name] = data
    return kept


def _files(folder: Path) -> set[str]:
    """Return the relative paths of all files below a bundle, without the manifest and its signature."""
    names = {
        os.path.relpath(os.path.join(base, name), folder)
        for base, folders, files in os.walk(folder)
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(base, f)))]
    }
    return names - {MANIFEST_NAME, SIGNATURE_NAME}


def _read_plain(path: Path, most_bytes: int) -> bytes:
    """Read a plain file of at most `most_bytes` (a longer one is cut, and fails its digest); refuse links."""
    if stat.S_ISREG(os.lstat(path).st_mode):
        # What was a plain file a moment ago may be a link now: refused by the flag, or seen on the open file.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                return file.read(min(most_bytes, status.st_size) + 1)
    raise BundleError("FILE_LINK", f"{path} is a link or no plain file; copy the file itself into the bundle")
