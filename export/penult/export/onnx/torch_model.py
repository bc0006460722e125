"""Run a classifier of PyTorch as it is, and export it with its logits and descriptor.

The descriptor is the input of the last dense layer. If a convolution gives the classes, it is that one's input.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from penult.bundle.preprocess import Pixels, Preprocess
from penult.bundle.scores import Floats
from penult.export.onnx.convert import float_to_onnx
from penult.export.onnx.foreign import ForeignModel, of_bytes, refusal
from penult.export.onnx.original import OriginalModel
from penult.export.onnx.penultimate import Head
from penult.nearest import did_you_mean

IMAGE, SCORES, READ = "image", "scores", "read"
HEAD = Head(SCORES, SCORES, READ, "")
_LAYERS = {nn.Linear: 2, nn.Conv2d: 4}
_EXPORT = "export the model as ONNX, and import that file"


class TorchModel(OriginalModel):
    """A classifier in eval mode on the CPU, and what its last layer reads.

    It maps float [N, 3, H, W] to logits float [N, classes].
    """

    def __init__(self, net: nn.Module, classes: int, spec: Preprocess, descriptor: str = "") -> None:
        """Find the last layer, or the module whose output is named; raise ImportModelError."""
        super().__init__(HEAD)
        self._tapped = _Tapped(net, descriptor)
        image = torch.zeros(1, 3, spec.crop, spec.crop)
        try:
            with torch.no_grad():
                if not descriptor:
                    self._tapped.path, self.layer = _last_layer(net, classes, image)
                elif descriptor not in dict(net.named_modules()):
                    raise refusal(
                        f"--descriptor {descriptor} is no module of the network"
                        f"{did_you_mean(descriptor, [name for name, _ in net.named_modules()])}"
                    )
                else:
                    self.layer = f"output of {descriptor}"
                self._tapped(image)
        except RuntimeError as error:
            raise refusal(
                f"the network cannot run images of {spec.crop} pixels ({_one_line(error)}); check the crop of "
                "--preprocess"
            ) from error

    def run(self, pixels: Pixels, spec: Preprocess) -> dict[str, Any]:
        """Return logits and descriptor of uint8 crops [n, crop, crop, 3], after the same preprocessing in NumPy."""
        scaled = (pixels.astype(np.float64) / 255 - spec.mean) / spec.std
        image = torch.from_numpy(np.ascontiguousarray(scaled.astype(np.float32).transpose(0, 3, 1, 2)))
        with torch.no_grad():
            found: list[Floats] = [values.numpy() for values in self._tapped(image)]
        return dict(zip((SCORES, READ), found, strict=True))

    def exported(self, spec: Preprocess) -> ForeignModel:
        """Return the network as an ONNX model for images of that size; raise ImportModelError."""
        try:
            return of_bytes(float_to_onnx(self._tapped, spec.crop, IMAGE, [SCORES, READ]))
        except Exception as error:  # of the exporter, which has dozens
            raise refusal(
                f"PyTorch {torch.__version__} cannot export the network ({_one_line(error)}); {_EXPORT}"
            ) from error


class _Tapped(nn.Module):
    """Returns logits, and the input of the module at `path`, or the output of the one that is named."""

    def __init__(self, net: nn.Module, output_of: str) -> None:
        super().__init__()
        self.net, self.path, self.is_output = net, output_of, bool(output_of)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with _tapping(self.net.get_submodule(self.path), self.is_output) as taken:
            scores = self.net(image)
        if len(taken) != 1:
            raise refusal(f"{self.path} runs {len(taken)} times for an image; name another module with --descriptor")
        return scores, taken[0]


@contextmanager
def _tapping(module: nn.Module, is_output: bool) -> Iterator[list[torch.Tensor]]:
    taken: list[torch.Tensor] = []
    if is_output:
        # A copy, since the next layer may work in place.
        hook = module.register_forward_hook(lambda _, inputs, output: taken.append(output.clone()))
    else:
        hook = module.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        yield taken
    finally:
        hook.remove()


def _last_layer(net: nn.Module, classes: int, image: torch.Tensor) -> tuple[str, str]:
    """Return the path of the layer that gives the classes, and its description; raise ImportModelError."""
    ran: list[tuple[str, Any, int]] = []

    def note(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        ran.append((path, module, inputs[0].dim() if inputs else 0))

    leaves = [
        (path, each) for path, each in net.named_modules() if next(each.parameters(recurse=False), None) is not None
    ]
    hooks = [each.register_forward_pre_hook(partial(note, path)) for path, each in leaves]
    try:
        scores = net(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
        shown = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise refusal(f"the network returns {shown}; a classifier gives [N, classes]")
    path, layer, rank = ran[-1]
    kind = next((kind for kind in _LAYERS if isinstance(layer, kind)), None)
    if kind is None or rank != _LAYERS[kind] or layer.weight.shape[0] != classes:
        raise refusal(
            f"the last layer of the network is {path} ({type(layer).__name__}), no dense layer with {classes} outputs; "
            "name the module before it with --descriptor"
        )
    return path, f"input of {path.removeprefix('model.')}"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(" .:;")
