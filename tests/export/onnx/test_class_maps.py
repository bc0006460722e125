"""Networks whose class maps are exact are recognised, and their maps add up to their scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from penult.bundle.class_map import LinearHead, by_views, largest_error, turned_back
from penult.bundle.manifest import DENSE, SVM, Manifest
from penult.bundle.map_support import OLDER
from penult.bundle.scores import Floats, largest_difference
from penult.export.config.train import TrainSettings
from penult.export.evaluation.whitening import directions
from penult.export.networks.architectures import get
from penult.export.networks.network import PenultNet, Whitening, build, make_views
from penult.export.onnx.class_maps import Found, find
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.runtime import ExportedModel

CLASSES = tuple("abcd")


def network(arch: str, views: int = 1, descriptor: str = "penultimate") -> tuple[PenultNet, Manifest]:
    """Return a network with random weights whose statistics are not the initial ones, and its manifest."""
    settings = TrainSettings(
        data=Path(),
        out=Path(),
        arch=arch,
        weights="none",
        freeze=0,
        views=views,
        descriptor=descriptor,
        augment="topdown",
    )
    net, spec = build(get(arch), settings, len(CLASSES)).train(), get(arch).preprocess
    with torch.no_grad():
        net(torch.randn(2, 3, spec.crop, spec.crop, generator=torch.Generator().manual_seed(0)))
    return net, Manifest(
        arch, CLASSES, spec, net.served_length, DENSE, {}, training={"settings": settings.as_json()}
    )  # fmt: skip


def outputs(model: bytes, manifest: Manifest, count: int = 3) -> tuple[Found, Floats, Floats, Floats]:
    """Return what a graph has for class maps, and logits, descriptors and feature maps of some noise."""
    crop = manifest.preprocess.crop
    pixels = np.random.default_rng(1).integers(0, 256, (count, crop, crop, 3), dtype=np.uint8)
    logits, descriptors, features = ExportedModel(model, manifest).run_features(pixels)
    return find(model, manifest, features.shape[1:]), logits, descriptors, features


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_each_view_is_turned_back(views: int) -> None:
    """A map of any view that --views makes lies as the photo does, once it is turned back."""
    photo = torch.arange(9.0).view(1, 1, 3, 3)
    for view, seen in enumerate(make_views(photo, views).numpy()):
        assert (turned_back(seen, view, views) == photo.numpy()[0]).all(), view


@pytest.mark.server  # exports whole networks
@pytest.mark.parametrize(
    ("arch", "views"),
    [("tiny5", 1), ("tiny5", 4), ("tiny5", 8), ("mobilenet_v2", 2), ("squeezenet1_1", 1), ("timm/resnet18", 1)],
)
def test_maps_of_the_exported_network_add_up(arch: str, views: int) -> None:
    """Sums of the maps are the logits, and the decision values of a linear SVM, within 1e-4; so is it with views."""
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    net, manifest = network(arch, views)
    found, logits, descriptors, features = outputs(to_onnx(net, manifest), manifest)
    assert found.support.scorers == (DENSE, SVM)
    assert found.head is not None
    assert largest_error(found.head, features, descriptors, logits, views) < 1e-4
    weights = np.random.default_rng(2).normal(size=(4, descriptors.shape[1])).astype(np.float32)
    svm = LinearHead(weights, logits[0], is_normalised=True)
    scores = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True) @ weights.T + logits[0]
    assert largest_error(svm, features, descriptors, scores, views) < 1e-4


@pytest.mark.server
def test_a_map_turns_with_its_photo() -> None:
    """With 8 views, the map of a photo that is turned is the turned map."""
    net, manifest = network("tiny5", views=8)
    model = ExportedModel(to_onnx(net, manifest), manifest)
    pixels = np.random.default_rng(4).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    found = find(model.onnx, manifest, (128, 8, 8))
    assert found.head is not None

    def map_of(photo: np.ndarray) -> Floats:
        _, descriptors, features = model.run_features(np.ascontiguousarray(photo))
        return found.head.maps(by_views(features, 8)[:, 0], descriptors[0], [1])[0]

    upright = map_of(pixels)
    assert largest_difference(upright.T, upright) > 0.1
    assert largest_difference(map_of(pixels[:, :, ::-1]), upright[:, ::-1]) < 1e-4
    assert largest_difference(map_of(pixels.swapaxes(1, 2)), upright.T) < 1e-4


@pytest.mark.server
@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("mobilenet_v3_small", "hidden layers are between the mean"),
        ("alexnet", "hidden layers are between the mean"),
        ("convnext_tiny", "LayerNormalization is between the mean"),
    ],
)
def test_other_networks_are_told_why_not(arch: str, reason: str) -> None:
    """A network that does not end in the mean and a dense layer gets no output, and says what is between."""
    net, manifest = network(arch)
    data = to_onnx(net, manifest)
    assert not ExportedModel(data, manifest).has_features
    support = find(data, manifest, ()).support
    assert support.scorers == ()
    assert all(reason in support.reasons[scorer] for scorer in (DENSE, SVM)), support.reasons


@pytest.mark.server
def test_an_svm_that_reads_something_else_has_no_maps() -> None:
    """With another layer as descriptor, or a whitened one, the dense head alone has maps."""
    net, manifest = network("tiny5", descriptor="stage4")
    support = outputs(to_onnx(net, manifest), manifest)[0].support
    assert (support.scorers, set(support.reasons)) == ((DENSE,), {SVM})
    assert "another layer" in support.reasons[SVM]
    net, manifest = network("tiny5")
    weight, bias, _ = directions(np.random.default_rng(1).random((40, 128), dtype=np.float32), 9)
    net.whitening = Whitening(torch.from_numpy(weight), torch.from_numpy(bias))
    manifest = replace(manifest, descriptor_length=9, training=dict(manifest.training) | {"whitening": {}})
    support = outputs(to_onnx(net, manifest), manifest)[0].support
    assert (support.scorers, support.reasons[SVM]) == ((DENSE,), "the SVM reads the whitened descriptor")


@pytest.mark.server
def test_a_graph_of_before_has_no_feature_map(seeded) -> None:
    """Without the output, both scorers say that the bundle is older than class maps."""
    import onnx

    model = onnx.load_from_string(seeded.onnx)
    del model.graph.output[2]
    support = find(model.SerializeToString(), seeded.manifest, ()).support
    assert support.reasons == {DENSE: OLDER, SVM: OLDER}
