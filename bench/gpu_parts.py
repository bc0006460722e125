"""What bench/gpu.py measures with: a seeded bundle, PyTorch as the reference, requests, and a server of its own."""

import copy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from penult.bench.photos import made_up
from penult.bundle import goldens, writer
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, PenultNet
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.float16 import to_float16
from penult.export.onnx.runtime import ExportedModel

CLASSES = tuple("abcdefghij")
GOLDENS = 8
READY_TIMEOUT_S = 400


def make_bundle(models: Path, arch: str, cuda: bool) -> PenultNet:
    """Publish a float16 bundle of seeded random weights as models/bench; return the network it was made of."""
    torch.manual_seed(7)
    architecture = get(arch)
    spec = architecture.preprocess
    body = architecture.body()
    with torch.no_grad():
        length = body.eval()(torch.zeros(1, 3, spec.crop, spec.crop)).shape[1]
        net = PenultNet(body, length, len(CLASSES), 0.0).train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = (
                    None  # the plain mean of what it sees: activations then have the scale of trained ones
                )
        net.to("cuda" if cuda else "cpu")
        crops = torch.from_numpy(np.stack([crop_encoded(p, spec) for p in pictures()])).to("cuda" if cuda else "cpu")
        net(Normalise(spec).to(crops.device)(crops))
    net = net.cpu().eval()
    manifest = Manifest(arch, CLASSES, spec, length, "dense", {"dense": 1.0, "svm": 1.0})
    model = to_float16(to_onnx(net, manifest))
    files = {"model.onnx": model, "golden.npz": make_goldens(manifest, model).to_bytes()}
    writer.publish(models / "bench", manifest, files)
    return net


def make_goldens(manifest: Manifest, model: bytes) -> Goldens:
    images = pictures()
    crops = np.stack([crop_encoded(image, manifest.preprocess) for image in images])
    logits, descriptor = ExportedModel(model, manifest).run(crops)
    rows = goldens.choose(logits, logits.argmax(axis=1).tolist(), GOLDENS)
    kept = tuple(images[row] for row in rows)
    return Goldens(kept, crops[rows], logits[rows], descriptor[rows], np.zeros((0, 0), dtype=np.float32))


def pictures() -> list[bytes]:
    """Return the JPEGs that `penult bench` makes up: 500 x 375 pixels, about as large as photos."""
    return made_up(seed=0)


def torch_reference(
    net: PenultNet, spec: Preprocess, batch: int, cuda: bool
) -> tuple[Callable[[Sequence[np.ndarray]], object], Callable[[], object]]:
    """Return PyTorch's (run of images from host memory to host memory, run of what is on the device already).

    On CUDA: float16, channels last, convolutions with batch norm folded in, cuDNN's own search, one CUDA graph, page-
    locked memory both ways. On CPUs (a dry run): float32, eager, only so that the same lines run.
    """
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if cuda else "cpu")
    kind = torch.float16 if cuda else torch.float32
    net = copy.deepcopy(net)
    net.body = folded(net.body)
    net = net.to(device, kind).to(memory_format=torch.channels_last).eval()
    normalise = Normalise(spec).to(device)
    shape = (batch, spec.crop, spec.crop, 3)
    staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=cuda)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        crops = normalise(pixels).to(kind).contiguous(memory_format=torch.channels_last)
        return [output.float() for output in net(crops)]

    replay, outputs = captured(forward) if cuda else (forward, forward())
    results = [torch.zeros(output.shape, pin_memory=cuda) for output in outputs]
    rows = staging.numpy()

    def run(images: Sequence[np.ndarray]) -> object:
        for row, image in enumerate(images):
            rows[row] = image
        pixels.copy_(staging, non_blocking=True)
        for result, output in zip(results, replay() or outputs, strict=True):  # a graph's replay returns nothing
            result.copy_(output, non_blocking=True)
        if cuda:
            torch.cuda.synchronize()
        return [result.numpy().copy() for result in results]

    def on_device() -> object:
        replay()
        return torch.cuda.synchronize() if cuda else None

    return run, on_device


def captured(forward: Callable[[], list[torch.Tensor]]) -> tuple[Callable[[], object], list[torch.Tensor]]:
    """Capture forward() as a CUDA graph, after warming up on a stream of its own as PyTorch's documentation asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = forward()
    return graph.replay, outputs


def folded(body: nn.Module) -> nn.Module:
    """Fold batch norm into convolutions, as the ONNX export does; the body as it is where torch.fx cannot trace it."""
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(body.eval())
    except Exception as error:
        print(f"note: the PyTorch reference keeps its batch norms: {error}", file=sys.stderr)
        return body


@contextmanager
def serving(models: Path, log: Path, *options: str) -> Iterator[dict[str, str]]:
    """Run `penult serve`; yield the words of its `ready` line (grpc, provider, …) and `seconds` to get there."""
    command = [
        *(sys.executable, "-m", "penult.cli", "serve", "--models", str(models), "--port", "0", "--metrics-port", "0"),
        *("--drain-lead", "0", "--queue-max-images", "8192", *options),
    ]
    started = time.perf_counter()
    with log.open("a") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True)
    too_late = threading.Timer(READY_TIMEOUT_S, process.kill)
    too_late.start()
    try:
        line = next((line for line in process.stdout if line.startswith("ready ")), None)
        too_late.cancel()
        if line is None:
            raise RuntimeError(f"the server did not become ready; its last words: {log.read_text()[-600:]}")
        words = dict(word.split("=", 1) for word in line.split()[1:])
        yield words | {"seconds": f"{time.perf_counter() - started:.1f}"}
    finally:
        too_late.cancel()
        process.terminate()
        process.wait(timeout=60)
