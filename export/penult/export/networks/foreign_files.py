"""Recognise what `penult import` is given, without PyTorch: an ONNX file, a checkpoint, a folder or an archive."""

from pathlib import Path

from penult.export.errors import ImportModelError
from penult.export.networks import mar_file, weights_file

ONNX, CHECKPOINT, HUGGING_FACE, MAR = "onnx", "checkpoint", "huggingface", "mar"


def kind_of(path: Path) -> str:
    """Return the kind of a source, by its first bytes and its name; raise ImportModelError if it does not exist."""
    if path.is_dir():
        return HUGGING_FACE
    if not path.exists():
        raise ImportModelError("SOURCE", f"{path} does not exist; give the file or folder of a model")
    if weights_file.is_onnx(path):
        return ONNX
    return MAR if mar_file.is_mar(path) else CHECKPOINT
