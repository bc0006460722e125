"""Helpers of the service's tests: channels, a small model whose faults can be chosen, photos with known defects."""

import functools
import io
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from penult.bundle.goldens import Goldens
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.writer import publish
from penult.client import Client
from penult.service.metrics import Exposition
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

SIDE = 8
# How long a unit of `work` takes about, and the side of matrices whose product takes so long on a slow core.
_WORK_S, _WORK_SIDE = 0.1, 1600


class Launched(NamedTuple):
    """A `penult serve` process that may not be ready yet."""

    target: str
    http: str
    process: subprocess.Popen[str]
    log: Path


# -- talking to servers ------------------------------------------------------------------------------------------------


@pytest.fixture
def connect() -> Iterator[Callable[..., grpc.Channel]]:
    """Open channels, connect(target, **options); they are closed at the end of the test."""
    channels: list[grpc.Channel] = []

    def open_channel(target: str, **options: int) -> grpc.Channel:
        # A pool of its own, so that every channel is a connection of its own.
        chosen = {"grpc.use_local_subchannel_pool": 1, "grpc.max_send_message_length": -1} | options
        channels.append(grpc.insecure_channel(target, options=list(chosen.items())))
        return channels[-1]

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture
def stub(server, connect) -> penult_pb2_grpc.PenultServiceStub:
    """The shared server's methods."""
    return penult_pb2_grpc.PenultServiceStub(connect(server.target))


@pytest.fixture
def failure() -> Callable[[Callable[[], object]], grpc.RpcError]:
    """Return the RpcError that a call ends with: failure(lambda: stub.Classify(request))."""

    def call(act: Callable[[], object]) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            act()
        return caught.value

    return call


@pytest.fixture
def samples() -> Callable[[object], dict[tuple, float]]:
    """Read metrics, of a server's HTTP address or of an Exposition: {(name, ("label", "value"), …): number}."""

    def read(source: str | Exposition) -> dict[tuple, float]:
        text = (
            source.exposition("")[0].decode() if isinstance(source, Exposition) else httpx.get(f"{source}/metrics").text
        )
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    return read


@pytest.fixture
def launch(tmp_path) -> Iterator[Callable[..., Launched]]:
    """Start a server without waiting for it: launch(models, *options); it is ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(models: Path, *options: str) -> Launched:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            ports = [one.getsockname()[1], other.getsockname()[1]]
        log = tmp_path / f"log-{len(processes)}.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "penult.cli", "serve", "--models", str(models), "--port", str(ports[0]),
                 "--metrics-port", str(ports[1]), *options],
                stdout=subprocess.PIPE, stderr=file, text=True,
            )  # fmt: skip
        processes.append(process)
        return Launched(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", process, log)

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def ask_until_refused() -> Callable[..., list[tuple[float, grpc.StatusCode]]]:
    """Ask from six threads without pause through `act`, until each has been refused: ask_until_refused(asker, act).

    asker() is called once per thread and returns a function that asks once and returns the status code. Returns when
    each answer came, by time.monotonic(), and its code.
    """

    def run(asker: Callable[[], Callable[[], grpc.StatusCode]], act: Callable[[], None]) -> list:
        outcomes, lock = [], threading.Lock()

        def ask_on() -> None:
            ask, code = asker(), grpc.StatusCode.OK
            while code is grpc.StatusCode.OK:
                code = ask()
                with lock:
                    outcomes.append((time.monotonic(), code))

        threads = [threading.Thread(target=ask_on) for _ in range(6)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while len(outcomes) <= 100:
            assert time.monotonic() < end, "too few answers in time"
            time.sleep(0.01)
        act()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert sum(code is not grpc.StatusCode.OK for _, code in outcomes) == len(threads)
        return outcomes

    return run


# -- photos ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def photo_paths(digits: Path) -> list[Path]:
    """A hundred test photos of digits, of all classes."""
    paths = sorted((digits / "test").glob("*/*.png"))
    return [paths[n * len(paths) // 100] for n in range(100)]


@pytest.fixture(scope="session")
def photos(photo_paths: list[Path]) -> list[bytes]:
    """The bytes of `photo_paths`."""
    return [path.read_bytes() for path in photo_paths]


@pytest.fixture(scope="session")
def crops(photos, bundle) -> np.ndarray:
    """The photos as the network looks at them, uint8 [100, crop, crop, 3]."""
    return np.stack([crop_encoded(photo, bundle.manifest.preprocess) for photo in photos])


@pytest.fixture(scope="session")
def labels(server, photos) -> list[str]:
    """What penult.v1 says of the photos."""
    with Client(server.target) as client:
        return [result.label for result in client.classify(photos).results]


@pytest.fixture(scope="session")
def found(server, ask_with_triton, photos, crops) -> dict:
    """What the unmodified tritonclient finds, and a client that knows the server by reflection only."""
    return ask_with_triton(server.target, server.http, "digits", photos, crops)


@pytest.fixture
def request_of() -> Callable[..., pb.ClassifyRequest]:
    """Make a ClassifyRequest for encoded photos: request_of(photo, …, top_k=3)."""

    def make(*encoded: bytes, **fields: object) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(images=[pb.Image(encoded=data) for data in encoded], **fields)

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encode pixels, a Pillow image or one grey level: encode(200), encode(image, "JPEG", exif=…)."""

    def save(picture: "int | np.ndarray | Image.Image", kind: str = "PNG", **options: object) -> bytes:
        if isinstance(picture, int):
            picture = np.full((SIDE, SIDE, 3), picture, dtype=np.uint8)
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return save


@pytest.fixture(scope="session")
def png_header() -> Callable[[int, int], bytes]:
    """Make a PNG that promises WIDTH x HEIGHT pixels and holds next to none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def make(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(64))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    return make


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bundle(models: Path) -> Bundle:
    """The trained digits bundle, read."""
    return read_bundle(models / "digits")


class Seeded(NamedTuple):
    """A small convolutional network with random weights, and three dozen images of noise for it."""

    onnx: bytes
    manifest: Manifest
    images: np.ndarray


@pytest.fixture(scope="session")
def seeded() -> Seeded:
    """A tiny5 of six classes, exported as a trained one is; its running statistics are not the initial ones."""
    import torch

    from penult.export.architectures import get
    from penult.export.convert import to_onnx
    from penult.export.model import PenultNet

    torch.manual_seed(5)
    net = PenultNet(get("tiny5").body(), 128, 6, 0.0)
    with torch.no_grad():
        net.train()(torch.rand(16, 3, 32, 32))
    manifest = Manifest("tiny5", tuple("abcdef"), get("tiny5").preprocess, 128, "dense", {"dense": 1.0})
    images = np.random.default_rng(3).integers(0, 256, (36, 32, 32, 3), dtype=np.uint8)
    return Seeded(to_onnx(net, manifest), manifest, images)


@pytest.fixture(scope="session")
def publish_brightness(encode) -> Callable[..., Path]:
    """Publish a model of two classes, dark and bright, below ROOT: publish_brightness(root, name="light", …).

    Its descriptor is a photo's mean red, green and blue, 0..1. `work`: matrix products per run, about 0.1 s each.
    `nan_at_white`: white photos give no finite logits. `fails_at_white`: onnxruntime fails at batches with a white
    photo. `most_images`: larger batches fail. `files`: replace or add files. `goldens`: replace fields of golden.npz.
    """

    def make(root: Path, name: str = "light", *, work: int = 0, nan_at_white: bool = False, most_images: int = 0,
             fails_at_white: bool = False, files: dict[str, bytes] | None = None, goldens: dict[str, object] | None = None,
             classes: tuple[str, str] = ("dark", "bright")) -> Path:  # fmt: skip
        network = _brightness(work, nan_at_white, most_images, fails_at_white, work_side() if work else _WORK_SIDE)
        spec = Preprocess(resize=SIDE, crop=SIDE)
        images = (encode(20), encode(230))
        crops = np.stack([crop_encoded(image, spec) for image in images])
        options = ort.SessionOptions()
        options.log_severity_level = 4  # unused initialisers are not worth a word
        session = ort.InferenceSession(network, options)
        logits, descriptor = session.run(["logits", "descriptor"], {"pixels": crops})
        expected = {"images": images, "crops": crops, "logits": logits, "descriptor": descriptor}
        expected |= {"svm_scores": np.zeros((0, 0), dtype=np.float32)} | (goldens or {})
        manifest = Manifest("brightness", classes, spec, 3, "dense", {"dense": 1.0, "svm": 1.0})
        contents = {"model.onnx": network, "golden.npz": Goldens(**expected).to_bytes()}
        return publish(root / name, manifest, contents | (files or {}))

    return make


@functools.cache
def work_side() -> int:
    """Return the side of matrices whose product takes one core of this machine about 0.1 s: some take a third of it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(_brightness(4, False, 0, False, _WORK_SIDE), options)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        session.run(["logits"], {"pixels": np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8)})
        seconds.append((time.perf_counter() - started) / 4)
    return int(_WORK_SIDE * max(1.0, _WORK_S / min(seconds)) ** (1 / 3))


def _brightness(work: int, nan_at_white: bool, most_images: int, fails_at_white: bool, side: int) -> bytes:
    """Build the network: the plain logits, plus zeros that are slow, not finite or out of range where that is asked."""
    steps = f"""
        square = Constant<value_ints = [{side}, {side}]>()
        sides = Constant<value_ints = [1, 2]>()
        both = Constant<value_ints = [0, 1]>()
        last = Constant<value_ints = [1]>()
        as_float = Cast<to = 1>(pixels)
        scaled = Mul(as_float, scale)
        descriptor = ReduceMean<keepdims = 0>(scaled, sides)
        weighted = MatMul(descriptor, weights)
        plain = Add(weighted, bias)
        brightness = ReduceMean<keepdims = 1>(descriptor, last)"""
    extras = ["plain"]
    if nan_at_white:
        steps += "\ndarkness = Sub(one, brightness) lost = Log(darkness)"
        extras.append("lost")
    if work:
        steps += "\nmean = ReduceMean<keepdims = 1>(brightness, both) product0 = Expand(mean, square)"
        for n in range(work):
            steps += f"\nlong{n} = MatMul(product{n}, product{n}) product{n + 1} = Mul(long{n}, shrink)"
        steps += f"\nworked = ReduceMax<keepdims = 1>(product{work}, both) nothing = Mul(worked, zero)"
        extras.append("nothing")
    if most_images:
        steps += f"""
        first = Constant<value_int = 0>() table = Constant<value_floats = {[0.0] * (most_images + 1)}>()
        shape = Shape(pixels) images = Gather(shape, first) within = Gather(table, images)"""
        extras.append("within")
    if fails_at_white:
        steps += """
        lone = Constant<value_floats = [0.0]>() whole = Cast<to = 7>(brightness) inside = Gather(lone, whole)"""
        extras.append("inside")
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        brightness (uint8[N,{SIDE},{SIDE},3] pixels) => (float[N,2] logits, float[N,3] descriptor)
        <float[3,2] weights = {{-4, 4, -4, 4, -4, 4}}, float[2] bias = {{6, -6}}, float scale = {{{1 / 255}}},
         float one = {{1}}, float zero = {{0}}, float shrink = {{{1 / side}}}>
        {{ {steps}
           logits = Sum({", ".join(extras)}) }}""")
    return model.SerializeToString()


@pytest.fixture(scope="session")
def quick(publish_brightness, tmp_path_factory):
    """A repository whose model loads and runs in no time."""
    root = tmp_path_factory.mktemp("quick")
    publish_brightness(root)
    return root
