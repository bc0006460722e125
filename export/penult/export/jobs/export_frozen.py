"""Export a network with given weights to ONNX, in this process or in one of its own.

PyTorch takes more memory than all else that `penult inspect` does, and gives none back. So if it is not loaded yet, a
process of its own exports the network and ends.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from penult.bundle.errors import PenultError
from penult.bundle.manifest import DENSE, Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.config import known_networks
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError

# A manifest needs two names; nothing reads the head's answers.
_NO_CLASSES = ("a", "b")


def draft(arch: str, spec: Preprocess) -> Manifest:
    """Return the names of the exported model's input and outputs, as a manifest."""
    length = known_networks.get(arch).descriptor_length
    return Manifest(arch, _NO_CLASSES, spec, length, DENSE, {})


def export(arch: str, weights: str, spec: Preprocess) -> bytes:
    """Return the ONNX file of a network; raise SettingsError if the weights do not fit it."""
    if "torch" in sys.modules:
        return _export(arch, weights, spec)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        values = json.dumps([arch, weights, spec.as_json(), str(target)])
        # -P: files of the folder that the user is in are not imported.
        done = subprocess.run([sys.executable, "-P", "-m", __name__, values], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise _reported(done)
        return target.read_bytes()


def _reported(done: "subprocess.CompletedProcess[bytes]") -> SettingsError:
    """Return the error that the process has printed."""
    try:
        reason, message = json.loads(done.stdout)
    except ValueError:
        ended = f"by signal {-done.returncode}" if done.returncode < 0 else f"with code {done.returncode}"
        reason, message = "EXPORT", f"the process that exports the network ended {ended}; check its memory, and repeat"
    return SettingsError(reason, message)


def _export(arch: str, weights: str, spec: Preprocess) -> bytes:
    from penult.export.networks.architectures import get
    from penult.export.networks.network import build
    from penult.export.onnx.convert import to_onnx

    settings = TrainSettings(data=Path(), out=Path(), arch=arch, weights=weights, freeze=0)
    return to_onnx(build(get(arch), settings, len(_NO_CLASSES)), draft(arch, spec))


def _main() -> int:
    arch, weights, values, target = json.loads(sys.argv[1])
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    spec = Preprocess(**fields)
    try:
        Path(target).write_bytes(_export(arch, weights, spec))
    except PenultError as error:
        print(json.dumps([error.reason, error.message]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
