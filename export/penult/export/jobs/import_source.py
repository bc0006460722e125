"""Open what `penult import` is given, and make an ONNX model of it, with the original beside it to compare with.

PyTorch is imported for checkpoints and Hugging Face folders only.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penult.bundle.preprocess import Preprocess
from penult.console import say
from penult.export.config.hugging_face import Folder, read_folder
from penult.export.config.import_model import ImportSettings, check_count, read_preprocess
from penult.export.errors import ImportModelError
from penult.export.networks import foreign_files, mar_file
from penult.export.networks.foreign_files import HUGGING_FACE, MAR, ONNX
from penult.export.onnx.foreign import ForeignModel, read_foreign
from penult.export.onnx.original import Original, OriginalModel
from penult.export.onnx.penultimate import Head, find_head

# TorchServe's own handler of images prepares them so.
_TORCHSERVE_HANDLER = "image_classifier"


@dataclass(frozen=True)
class Given:
    """A source that has been opened.

    Attributes:
        kind: What penult.export.networks.foreign_files calls it.
        path: The model's file or folder.
        labels: The class names that it brings along; empty if it has none.
        labels_source: How messages name where they are from.
        folder: What a Hugging Face folder says.
        archive: What an archive of TorchServe says.
    """

    kind: str
    path: Path
    labels: tuple[str, ...] = ()
    labels_source: str = ""
    folder: Folder | None = None
    archive: mar_file.MarFile | None = None


@dataclass(frozen=True)
class Source:
    """A model to import.

    Attributes:
        foreign: The model with float input.
        head: Its tensors.
        original: The model as its own library runs it.
        preprocess: How images become its input.
        architecture: What the manifest calls it.
        scores: Where the logits are from, for a printed line.
        layer: What the descriptor is, for the same line.
        record: The manifest's `training.imported`.
    """

    foreign: ForeignModel
    head: Head
    original: OriginalModel
    preprocess: Preprocess
    architecture: str
    scores: str
    layer: str
    record: dict[str, Any]


@contextmanager
def opened(source: Path) -> Iterator[Given]:
    """Yield what a source is and which class names it has; raise PenultError. The files of an archive end with it."""
    kind = foreign_files.kind_of(source)
    if kind == HUGGING_FACE:
        folder = read_folder(source)
        yield Given(kind, source, folder.labels, f"config.json of {source}", folder)
    elif kind == MAR:
        archive = mar_file.read_mar(source)
        with mar_file.unpacked(archive) as path:
            inside = foreign_files.kind_of(path)
            yield Given(inside, path, archive.labels, f"index_to_name.json of {source}", archive=archive)
    else:
        yield Given(kind, source)


def load(given: Given, settings: ImportSettings, classes: Sequence[str], classes_source: str) -> Source:
    """Return the model of a source that gives one score for each class; raise PenultError."""
    if given.kind == ONNX:
        return _of_onnx(given, settings)
    from penult.export.networks import classifiers, hugging_face
    from penult.export.onnx import torch_model

    if given.folder:
        _check_no_arch(settings)
        classifier = hugging_face.read(given.folder)
        files = hugging_face.weights_of(given.path)
    else:
        shown = given.archive.shown if given.archive else str(settings.source)
        classifier = classifiers.read_checkpoint(given.path, settings.arch, shown, is_guessed=given.archive is not None)
        files = [settings.source]
    check_count(tuple(classes), classifier.classes, classes_source)
    served = _torchserve(given)
    if served:
        classifier = replace(classifier, preprocess=served, preprocess_of=f"TorchServe's {_TORCHSERVE_HANDLER} handler")
    spec = _preprocess(settings, classifier.preprocess, classifier.preprocess_of)
    model = torch_model.TorchModel(classifier.net, classifier.classes, spec, settings.descriptor)
    record = _record(given, settings, files) | {
        "producer": classifier.made_by,
        "descriptor": model.layer,
        "preprocess": "--preprocess" if settings.preprocess else classifier.preprocess_of,
    }
    return Source(
        model.exported(spec),
        torch_model.HEAD,
        model,
        spec,
        classifier.architecture,
        classifier.architecture,
        model.layer,
        record,
    )


def _of_onnx(given: Given, settings: ImportSettings) -> Source:
    _check_no_arch(settings)
    foreign = read_foreign(given.path)
    served = _torchserve(given)
    if served and foreign.side:
        served = replace(served, resize=max(served.resize, foreign.side), crop=foreign.side)
    spec = (
        _preprocess(settings, served, f"TorchServe's {_TORCHSERVE_HANDLER} handler", foreign.side)
        if served
        else read_preprocess(settings.preprocess, foreign.side)
    )
    head = find_head(foreign, settings.descriptor)
    record = _record(given, settings, [settings.source]) | {
        "producer": f"{foreign.proto.producer_name} {foreign.proto.producer_version}".strip()[:100],
        "logits": head.logits,
        "descriptor": head.descriptor,
    }
    if head.softmax:
        record["left_out"] = head.softmax
    architecture = f"onnx/{settings.source.stem[:60]}"
    return Source(foreign, head, Original(foreign, head), spec, architecture, head.logits, head.descriptor, record)


def _check_no_arch(settings: ImportSettings) -> None:
    if settings.arch:
        raise ImportModelError(
            "ARCH", f"--arch is for a checkpoint, and {settings.source} says itself which network it has; omit --arch"
        )


def _torchserve(given: Given) -> Preprocess | None:
    """Return the preprocessing of TorchServe's own handler, if the archive names it."""
    if given.archive is None:
        return None
    if given.archive.handler == _TORCHSERVE_HANDLER:
        return Preprocess()
    say(
        f"note: the handler {given.archive.handler!r} of {given.archive.path.name} is not run; --preprocess replaces it"
    )
    return None


def _preprocess(settings: ImportSettings, own: Preprocess | None, source: str, side: int = 0) -> Preprocess:
    """Return how images are prepared, and print their origin; raise ImportModelError."""
    if own is None and not settings.preprocess:
        raise ImportModelError("PREPROCESS", source)
    spec = read_preprocess(settings.preprocess, side, own=own)
    filled = f" and {source}" if own else ""
    origin = f"--preprocess{filled}" if settings.preprocess else source
    fit = "" if spec.fit == "crop" else f" ({spec.fit})"
    say(
        f"preprocessing from {origin}: resize {spec.resize}{fit}, crop {spec.crop}, {spec.interpolation}, mean "
        f"{_shown(spec.mean)}, std {_shown(spec.std)}"
    )
    return spec


def _shown(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def _record(given: Given, settings: ImportSettings, files: Sequence[Path]) -> dict[str, Any]:
    """Return what the manifest records of a source; the digest is of its weights, or of the archive."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    kind = MAR if given.archive else given.kind
    name = settings.source.resolve().name
    return {"kind": kind, "file": name, "sha256": digest.hexdigest()}
