"""The float16 model: the same face, half the bytes, float32 ends, and nearly the same numbers."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from penult.bundle.manifest import Manifest
from penult.bundle.scores import largest_difference
from penult.export.config.train import TrainSettings
from penult.export.errors import ParityError
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, build
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.float16 import to_float16

pytestmark = pytest.mark.server  # exports whole networks

# Seen: 3e-4 to 7e-4. One rounding to float16 is 5e-4.
TOLERANCE = 2e-3


@pytest.fixture(scope="module", params=["tiny5", "mobilenet_v3_small", "resnet18"])
def models(request: pytest.FixtureRequest) -> tuple[int, bytes, bytes]:
    """A network's crop, its float model with random weights, and its float16 model."""
    architecture = get(request.param)
    crop = architecture.preprocess.crop
    net = build(architecture, TrainSettings(data=Path(), out=Path(), arch=request.param, weights="none", freeze=0), 4)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, crop, crop, generator=torch.Generator().manual_seed(0)))
    manifest = Manifest(
        request.param, tuple("abcd"), architecture.preprocess, net.descriptor_length, "dense", {"dense": 1.0}
    )
    given = to_onnx(net, manifest)
    return crop, given, to_float16(given)


def run(model: bytes, pixels: np.ndarray) -> list[np.ndarray]:
    """Return logits and descriptors."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["logits", "descriptor"], {"pixels": pixels})


def weights_of(model: onnx.ModelProto, kind: str) -> set[int]:
    """Return the types of the weights that nodes of a kind read."""
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    return {types[name] for node in model.graph.node if node.op_type == kind for name in node.input if name in types}


@pytest.mark.parametrize("count", [1, 3])
def test_answers_hardly_move(models, count: int):
    """Any batch size runs; logits and descriptors are float32 and within 2e-3 of the largest of the float model's."""
    crop, given, half = models
    pixels = np.random.default_rng(count).integers(0, 256, (count, crop, crop, 3), dtype=np.uint8)
    for actual, expected in zip(run(half, pixels), run(given, pixels), strict=True):
        assert actual.dtype == np.float32
        assert 0 < largest_difference(actual, expected) < TOLERANCE


def test_the_file_is_half_as_large(models):
    """Weights are nearly all of the file; what is left is the graph."""
    _, given, half = models
    assert 0.5 < len(half) / len(given) < 0.54


def test_the_face_is_the_same(models):
    """Input and outputs keep names, types and shapes, the open batch size too."""
    _, given, half = (onnx.load_from_string(m) if isinstance(m, bytes) else m for m in models)
    for side in ("input", "output"):
        assert list(getattr(half.graph, side)) == list(getattr(given.graph, side))


def test_the_ends_stay_float(models):
    """Convolutions and the dense head read float16 weights; what normalises pixels reads float32; casts join.

    One cast follows the normalisation, and one comes before each output.
    """
    _, given, half = (onnx.load_from_string(m) if isinstance(m, bytes) else m for m in models)
    for kind in ("Conv", "Gemm"):
        assert weights_of(half, kind) == {TensorProto.FLOAT16}
    for kind in ("Sub", "Div"):
        assert weights_of(half, kind) == {TensorProto.FLOAT}
    counts = [sum(node.op_type == "Cast" for node in model.graph.node) for model in (given, half)]
    assert counts[1] - counts[0] == 1 + len(half.graph.output)
    others = [[node.op_type for node in model.graph.node if node.op_type != "Cast"] for model in (given, half)]
    assert others[0] == others[1]


def test_normalising_is_exact(models):
    """What leaves the ends is the float32 normalisation rounded once: no step of it is in float16."""
    crop, _, half = models
    model = onnx.load_from_string(half)
    first = next(node for node in model.graph.node if node.op_type == "Conv").input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(first, TensorProto.FLOAT16, None))
    pixels = np.random.default_rng(1).integers(0, 256, (2, crop, crop, 3), dtype=np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    spec = get("tiny5" if crop == 32 else "resnet18").preprocess
    expected = Normalise(spec)(torch.from_numpy(pixels)).numpy().astype(np.float16)
    np.testing.assert_array_equal(session.run([first], {"pixels": pixels})[0], expected)


# -- small models, for what no architecture of ours has ----------------------------------------------------------------


def small(body: str, weights: str = "float[2,3] w = {1,2,3,4,5,6}, float one = {1}") -> bytes:
    """A model of uint8 [N, 3] pixels with these nodes and weights."""
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        small (uint8[N,3] pixels) => (float[N,2] logits, float[N,2] descriptor) <{weights}>
        {{ x = Cast<to = 1>(pixels) {body} }}""").SerializeToString()


PLAIN = "descriptor = Gemm<transB = 1>(x, w) logits = Relu(descriptor)"


def test_an_output_may_be_read_on():
    """A descriptor that the head reads, as in every network of ours, is both: float16 within, float32 outside."""
    pixels = np.array([[1, 2, 3], [0, 0, 1]], dtype=np.uint8)
    for actual, expected in zip(run(to_float16(small(PLAIN)), pixels), run(small(PLAIN), pixels), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_weight_of_both_worlds_is_kept_twice():
    """A number that both normalising and the body use stays float32 there and is float16 here."""
    data = small("y = Sub(x, one) d = Gemm<transB = 1>(y, w) descriptor = Add(d, one) logits = Relu(descriptor)")
    half = onnx.load_from_string(to_float16(data))
    types = {weight.name: weight.data_type for weight in half.graph.initializer}
    assert (types["one"], types["one_half"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    pixels = np.array([[1, 2, 3]], dtype=np.uint8)
    np.testing.assert_array_equal(run(half.SerializeToString(), pixels)[0], run(data, pixels)[0])


def test_casts_and_constants_of_the_body_follow():
    """Within the body, a cast to float becomes one to float16, and a constant is rounded."""
    data = small(
        "d = Gemm<transB = 1>(x, w) whole = Cast<to = 7>(d) back = Cast<to = 1>(whole) "
        "c = Constant<value = float[1] {0.1}>() descriptor = Add(back, c) logits = Relu(descriptor)"
    )
    pixels = np.array([[1, 2, 3]], dtype=np.uint8)
    np.testing.assert_allclose(run(to_float16(data), pixels)[0], run(data, pixels)[0], rtol=1e-3)


@pytest.mark.parametrize("value", ["70000", "-1e30"])
def test_a_weight_too_large_is_refused(value: str):
    """What float16 cannot hold is an error that names the weight, not infinity in an answer."""
    with pytest.raises(ParityError, match="w has values beyond 65504"):
        to_float16(small(PLAIN, f"float[2,3] w = {{1,2,3,4,5,{value}}}"))


def test_not_a_number_is_refused():
    """A NaN among the weights is refused too."""
    model = onnx.load_from_string(small(PLAIN))
    weight = next(w for w in model.graph.initializer if w.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.full((2, 3), np.nan, dtype=np.float32), "w"))
    with pytest.raises(ParityError, match="w has values beyond"):
        to_float16(model.SerializeToString())


def test_a_model_is_halved_once(models):
    """A float16 model is not converted again."""
    with pytest.raises(ParityError, match="already float16"):
        to_float16(models[2])


def test_an_int8_model_is_refused():
    """Scales of a quantised model are not weights: the float version is to be converted instead."""
    body = "q = QuantizeLinear(x, one, zero) y = DequantizeLinear(q, one, zero) " + PLAIN.replace("(x,", "(y,")
    with pytest.raises(ParityError, match="already int8"):
        to_float16(small(body, "float[2,3] w = {1,2,3,4,5,6}, float one = {1}, uint8 zero = {0}"))
