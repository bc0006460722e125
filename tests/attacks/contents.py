"""Bad contents: what stands in svm.pkl, model.onnx, golden.npz and baseline.npz, with the manifest made right for it."""

import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import sklearn
from onnx import TensorProto, numpy_helper
from tests.attacks import good_bundle, pickles
from tests.attacks.mutations import Parts, Spoil, seal, sealed

from penult.bundle.goldens import Goldens
from penult.bundle.manifest import FileEntry, Manifest

# -- svm.pkl -----------------------------------------------------------------------------------------------------------


def evil(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Pickles that would run a command; sealed."""
    for good in (parts.rbf, parts.linear):
        for name, data in pickles.evil(good.pipeline, parts.outside / "canaries" / "canary"):
            yield f"{name} in {type(good.pipeline[-1]).__name__}", sealed("svm.pkl", data)


def crafted(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Pickles by hand that call, crash, hang or swell a reader; sealed."""
    for name, data in pickles.CRAFTED.items():
        yield name, sealed("svm.pkl", data)


def damaged(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Real SVMs with arrays of other sizes, kinds or numbers; sealed, and the linear ones with their own goldens."""
    for name, data in pickles.damaged(parts.rbf.pipeline):
        yield name, sealed("svm.pkl", data)
    goldens = parts.linear.goldens.to_bytes()
    for name, data in pickles.damaged(parts.linear.pipeline):
        yield name, lambda folder, data=data: seal(folder, svm_pkl=data, golden_npz=goldens)


def skewed(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """SVMs of other scikit-learns; sealed."""
    here = sklearn.__version__.encode()
    for version in (b"0.24.2", b"1.6.1", b"2.0.0", b"9.9.9", b"x", b"", b"1", b"1\n9.1", b"\xc3\xa4.1.1"):
        text = b"\x8c" + bytes([len(version)]) + version
        data = parts.rbf.pickled().replace(b"\x8c" + bytes([len(here)]) + here, text)
        yield repr(version), sealed("svm.pkl", data)


# -- model.onnx --------------------------------------------------------------------------------------------------------


def networks(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Networks that are none, of other shapes, or that read other files; sealed."""
    for size in (1, 100, 100_000):
        yield f"{size} random bytes", sealed("model.onnx", rng.bytes(size))
    good = parts.rbf.network.SerializeToString()
    for round_ in range(10):
        yield f"weights a hundredth off {round_}", sealed("model.onnx", _nudged(parts.rbf.network, rng))
        data = bytearray(good)
        for at in rng.integers(len(data), size=5):
            data[at] = (data[at] + 1 + int(rng.integers(255))) % 256
        if _has_other_nodes(bytes(data), parts.rbf.network):
            yield f"five other bytes {round_}", sealed("model.onnx", bytes(data))
    yield "descriptors of another length", sealed("model.onnx", good_bundle.network(0, 24).SerializeToString())
    for where in ("weights.bin", "./weights.bin", "../secret.bin", "/etc/hostname", str(parts.secret), "hard.bin", ""):
        yield f"weights in {where[:20]!r}", _external(parts, where)
    yield "an unknown operator", sealed("model.onnx", good.replace(b"ReduceMean", b"ReduceEvil"))
    yield "another input", sealed("model.onnx", good.replace(b"pixels", b"pixelz"))


def _nudged(network: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    changed = onnx.ModelProto()
    changed.CopyFrom(network)
    tensor = next(t for t in changed.graph.initializer if t.name == "weights")
    weights = numpy_helper.to_array(tensor)
    tensor.CopyFrom(
        numpy_helper.from_array(weights + rng.normal(size=weights.shape).astype(np.float32) / 100, "weights")
    )
    return changed.SerializeToString()


def _has_other_nodes(data: bytes, network: onnx.ModelProto) -> bool:
    """Tell whether other bytes are more than a last digit of a weight, or a name."""
    try:
        return [node.op_type for node in onnx.load_from_string(data).graph.node] != [
            n.op_type for n in network.graph.node
        ]
    except Exception:
        return True


def _external(parts: Parts, where: str) -> Spoil:
    """Keep the weights in a file: of the bundle, of the server's working folder, or elsewhere."""
    model = onnx.ModelProto()
    model.CopyFrom(parts.rbf.network)
    tensor = next(t for t in model.graph.initializer if t.name == "weights")
    weights = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", where), ("offset", "0"), ("length", str(len(weights)))):
        tensor.external_data.add(key=key, value=value)

    def spoil(folder: Path) -> None:
        manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
        if where == "weights.bin":
            (folder / where).write_bytes(weights)
            files = {**manifest.files, where: FileEntry.of(weights)}
            (folder / "manifest.json").write_bytes(replace(manifest, files=files).to_json())
        for name in ("weights.bin", "hard.bin"):  # in the folder that the server works in
            (parts.outside / name).write_bytes(weights)
        seal(folder, model_onnx=model.SerializeToString())

    return spoil


# -- golden.npz and baseline.npz ---------------------------------------------------------------------------------------


def _npz(arrays: dict[str, np.ndarray], **change: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: value for name, value in (arrays | change).items() if value is not None})
    return buffer.getvalue()


def archives(parts: Parts, rng: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Goldens and baselines with other numbers, sizes and kinds, and bombs; sealed."""
    for file, keys in (("golden.npz", _GOLDEN), ("baseline.npz", _BASELINE)):
        with np.load(parts.rbf.folder / file) as opened:
            arrays = dict(opened)
        for key in keys:
            for what, change in _CHANGES.items():
                if (key, what) in _GOOD_CHANGES:
                    continue
                try:
                    data = _npz(arrays, **{key: change(arrays[key])})
                except (TypeError, ValueError):
                    continue
                yield f"{file} {key} {what}", sealed(file, data)
        for what, data in _bad_archives(arrays).items():
            yield f"{file} {what}", sealed(file, data)
        for mebibytes in (4096, 200, 120):
            key = next(iter(arrays))
            yield f"{file} bomb of {mebibytes} MiB", lambda f, n=file, k=key, m=mebibytes: sealed(n, _bomb(k, m))(f)
        yield f"{file} bomb that says it is small", lambda f, n=file, k=key: sealed(n, _understated(_bomb(k, 200)))(f)
    for what, goldens in _other_goldens(parts.rbf.goldens).items():
        yield f"golden.npz {what}", sealed("golden.npz", goldens.to_bytes())


_GOLDEN = ("image_bytes", "image_lengths", "crops", "logits", "descriptor", "svm_scores")
_BASELINE = ("references", "numbers", "class_share", "confidence", "mean", "directions", "residual", "photos")
# Fewer or more photos to be near to are a good baseline, and so is one of an older penult.
_GOOD_CHANGES = {("references", "shorter"), ("references", "double"), ("residual", "missing"), ("photos", "missing")}
_CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    "missing": lambda a: None,
    "shorter": lambda a: a[:-1],
    "double": lambda a: np.concatenate([a, a]),
    "empty": lambda a: a[:0],
    "objects": lambda a: np.array([pickles.Calls(os.system, "true")] * len(a), dtype=object),
    "text": lambda a: np.array(["x"] * len(a)),
    "of more dimensions": lambda a: a[None],
    "complex": lambda a: a.astype(complex),
    "negative": lambda a: -1 - a.astype(np.int64) if a.dtype.kind in "ui" else -1 - np.abs(a),
    "NaN": lambda a: np.full_like(a, np.nan) if a.dtype.kind == "f" else a.astype(np.float64) * np.nan,
    "huge": lambda a: np.full_like(a, 1e30) if a.dtype.kind == "f" else np.full(a.shape, 2**62),
}


def _other_goldens(good: Goldens) -> dict[str, Goldens]:
    return {
        "other photos": replace(good, images=good.images[::-1]),
        "no photos": replace(good, images=()),
        "logits a little off": replace(good, logits=good.logits * np.float32(1.001)),
        "scores a little off": replace(good, svm_scores=good.svm_scores * np.float32(1.001)),
        "descriptors a little off": replace(good, descriptor=good.descriptor * np.float32(1.001)),
        "pixels off": replace(good, crops=good.crops ^ 4),
        "photos that are none": replace(good, images=(b"GIF89a",) * len(good.images)),
        "the secret as a photo": replace(good, images=(b"\xff\xd8\xff" + b"secret" * 9,) * len(good.images)),
    }


def _bad_archives(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return archives that numpy.savez would not write, some of which claim more than they hold."""
    key = next(iter(arrays))
    return {
        "header of 2^60 numbers": _entry(key, _header(1 << 60)),
        "header of another length": _entry(key, _header(1000) + b"x"),
        "header that nests": _entry(key, b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
        "lzma": _npz_as(zipfile.ZIP_LZMA, arrays),
        "bzip2": _npz_as(zipfile.ZIP_BZIP2, arrays),
        "20 entries": _npz(arrays | {f"more{n}": np.zeros(1) for n in range(20)}),
        "a pickle": pickle.dumps(arrays),
    }


def _header(count: int) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def _entry(key: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", data)
    return buffer.getvalue()


@functools.cache
def _bomb(key: str, mebibytes: int) -> bytes:
    """Return an archive that unfolds to one array of zeros."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{key}.npy", "w", force_zip64=True) as file,
    ):
        file.write(_header(mebibytes << 20))
        for _ in range(mebibytes):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def _understated(bomb: bytes) -> bytes:
    """Return an archive whose directory says that it unfolds to a thousand bytes."""
    at = bomb.rindex(b"PK\x01\x02") + 24
    return bomb[:at] + struct.pack("<I", 1000) + bomb[at + 4 :]


def _npz_as(method: int, arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", file.getvalue())
    return buffer.getvalue()


KINDS = (evil, crafted, damaged, skewed, networks, archives)
