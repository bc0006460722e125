"""Class maps add up to scores, and lie where the network looked."""

import numpy as np
import pytest

from penult.bundle.class_map import LinearHead, area_of
from penult.bundle.errors import BundleError
from penult.bundle.preprocess import STRETCH, Preprocess, crop_rgb


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("views", [1, 4])
def test_a_map_adds_up_to_the_score(views: int, is_normalised: bool) -> None:
    """The places of a map and the bias sum to the class's score, by dense head and SVM, over all views."""
    random = np.random.default_rng(5)
    features = random.random((views, 6, 4, 4), dtype=np.float32)
    descriptor = features.mean(axis=(0, 2, 3))
    head = LinearHead(*(random.normal(size=n).astype(np.float32) for n in ((3, 6), 3)), is_normalised)
    found = head.maps(features, descriptor, [2, 0])
    assert found.shape == (2, 4, 4)
    assert np.allclose(found.sum(axis=(1, 2)) + head.bias[[2, 0]], head.scores(descriptor)[[2, 0]], atol=1e-5)
    unit = descriptor / (np.linalg.norm(descriptor) if is_normalised else 1)
    assert np.allclose(head.scores(descriptor), head.weights @ unit + head.bias, atol=1e-5)


@pytest.mark.parametrize("fit", ["crop", STRETCH])
@pytest.mark.parametrize("size", [(90, 60), (41, 100)])
def test_the_area_is_what_the_crop_shows(size: tuple[int, int], fit: str) -> None:
    """Pixels of the crop have the brightness that a ramp over the photo has within the area."""
    width, height = size
    spec = Preprocess(40, 32, fit=fit)
    left, top, right, bottom = area_of(spec, width, height)
    for axis, (first, last, length) in enumerate(((top, bottom, height), (left, right, width))):
        ramp = np.arange(length, dtype=np.uint8)[:, None] if axis == 0 else np.arange(length, dtype=np.uint8)
        photo = np.broadcast_to(ramp, (height, width))
        crop = crop_rgb(np.repeat(photo[..., None], 3, axis=2).tobytes(), height, width, spec)[..., 0]
        middles = first - 0.5 + (np.arange(32) + 0.5) * (last - first) / 32
        seen = crop.mean(axis=1 - axis)
        assert np.abs(seen - middles)[2:-2].max() < 1, axis


def test_a_dense_head_is_checked_when_read() -> None:
    """A head of another size, or with numbers that are not finite, is refused."""
    head = LinearHead(np.ones((2, 3), np.float32), np.zeros(2, np.float32))
    assert (LinearHead.from_bytes(head.to_bytes(), 2, 3).weights == head.weights).all()
    head.bias[0] = np.nan
    for data, classes in ((head.to_bytes(), 2), (b"no archive", 2), (head.to_bytes(), 4)):
        with pytest.raises(BundleError, match="dense head"):
            LinearHead.from_bytes(data, classes, 3)
