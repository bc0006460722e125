"""Check the file of `--weights` without PyTorch, by its first bytes.

Each error names the kind of file and what to do, in one line.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path

from penult.bundle.refusals import why
from penult.export.config.known_networks import IMAGENET, IMAGENET_V2, Network
from penult.export.errors import SettingsError
from penult.nearest import did_you_mean

SAVE = "torch.save(model.state_dict(), 'weights.pth')"
DOWNLOADS = (IMAGENET, IMAGENET_V2)
_HEAD_BYTES = 512
_SAFETENSORS_LENGTH_BYTES = 8
# In an ONNX file, one of these field tags follows the format version.
_ONNX_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"
_ONNX_VERSIONS = range(1, 32)


def check(weights: str, network: Network) -> None:
    """Raise SettingsError if there is no such file or download, or if it is another kind of file."""
    if weights == "none":
        return
    if weights in DOWNLOADS:
        if weights not in network.downloads:
            there = f"it has {network.downloads[0]}; " if network.downloads else ""
            raise _refusal(f"{network.library} has no {weights} weights for {network.name}; {there}give a file or none")
        return
    path = Path(weights)
    if path.is_dir():
        raise _refusal(f"--weights {weights} is a folder; give the state-dict file{_one_inside(path)}")
    if not path.is_file():
        raise _refusal(
            f"--weights {weights} does not exist; give a state-dict file, imagenet or none{_meant(weights, path)}"
        )
    check_file(path, f"--weights {weights}")


def check_file(path: Path, shown: str) -> None:
    """Raise SettingsError if a file is of another kind than those of state dicts; `shown` is how messages name it."""
    head = _head(path, shown)
    for looks_so, kind in _KINDS:
        if looks_so(head, path):
            raise _refusal(f"{shown} {kind}")


def is_onnx(path: Path) -> bool:
    """Return True if a file is named .onnx or begins as an ONNX model; raise SettingsError."""
    return _is_onnx(_head(path, str(path)), path)


def _head(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise _refusal(f"{shown} cannot be read: {why(error)}") from error


def _refusal(message: str) -> SettingsError:
    return SettingsError("WEIGHTS", message)


def _meant(weights: str, path: Path) -> str:
    """Return a hint at a similar word, or at a similar file in the same folder."""
    beside = [str(path.with_name(each.name)) for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(weights, [*DOWNLOADS, "none"]) or did_you_mean(weights, beside)


def _one_inside(folder: Path) -> str:
    found = sorted(each for each in folder.iterdir() if each.suffix in (".safetensors", ".pt", ".pth", ".bin"))
    return f", such as {found[0]}" if found else ""


def _is_page(head: bytes, _: Path) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _is_onnx(head: bytes, path: Path) -> bool:
    if _begins_as_safetensors(head, path):
        return False
    begins_so = len(head) > 2 and head[0] == 0x08 and head[1] in _ONNX_VERSIONS and head[2] in _ONNX_FIELDS
    return path.suffix.lower() == ".onnx" or begins_so


def is_safetensors(path: Path) -> bool:
    """Return True if the file is named .safetensors or begins as one."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return _begins_as_safetensors(head, path)


def _begins_as_safetensors(head: bytes, path: Path) -> bool:
    length = int.from_bytes(head[:_SAFETENSORS_LENGTH_BYTES], "little")
    return head[_SAFETENSORS_LENGTH_BYTES:][:1] == b"{" and length < path.stat().st_size


def _is_damaged_safetensors(head: bytes, path: Path) -> bool:
    return path.suffix.lower() == ".safetensors" and not _begins_as_safetensors(head, path)


def _is_pickle(head: bytes, _: Path) -> bool:
    """Return True if this is a plain pickle; those inside torch's files have protocol 2."""
    return head[:1] == b"\x80" and head[1:2] in (b"\x03", b"\x04", b"\x05")


def _is_cut_short(head: bytes, path: Path) -> bool:
    return head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path)


def _members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_torchscript(_: bytes, path: Path) -> bool:
    return any(name.endswith("/constants.pkl") for name in _members(path))


def _is_other_archive(head: bytes, path: Path) -> bool:
    return head.startswith(b"PK") and not any(name.endswith("/data.pkl") for name in _members(path))


def _starts(*beginnings: bytes) -> Callable[[bytes, Path], bool]:
    return lambda head, _: head.startswith(beginnings)


# The message names the first kind that fits.
_KINDS: tuple[tuple[Callable[[bytes, Path], bool], str], ...] = (
    (lambda head, _: not head, "is empty; copy or download it again"),
    (_is_page, "is a web page; download the file itself"),
    (
        lambda head, _: head.startswith(b"version ") and b"git-lfs" in head,
        "is a Git LFS pointer; run git lfs pull in its repository",
    ),
    (_is_onnx, f"is an ONNX model, which has no state dict; from the PyTorch model, {SAVE}"),
    (_is_damaged_safetensors, "is not a safetensors file, or truncated; copy or download it again"),
    (
        _starts(b"\x89HDF"),
        f"is an HDF5 file, as Keras writes; penult reads PyTorch's state dicts: {SAVE}",
    ),
    (_starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf"), "is compressed; unpack it, and give the file inside"),
    (_is_pickle, f"contains pickled objects, which penult does not load; on the machine that made it, save {SAVE}"),
    (_is_cut_short, "is truncated or damaged; copy or download it again"),
    (_is_torchscript, "is TorchScript; convert it with torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"),
    (_is_other_archive, f"is a zip archive that torch.save() did not write; unpack it, or save {SAVE}"),
)
