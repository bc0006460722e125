"""Photos become the network's input, by threads that together hold no more pixels than the budget."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from penult.bundle.errors import ImageError
from penult.bundle.guards import ImageLimits, PixelBudget
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.service.inference.decoder import Decoder, EncodedPhoto, RawPhoto

SPEC = Preprocess(resize=16, crop=12)


class Recorded(PixelBudget):
    """A budget that notes what is held, and the most at one time."""

    def __init__(self, most_pixels: int) -> None:
        """Start with nothing."""
        super().__init__(most_pixels)
        self.asked: list[int] = []

    def hold(self, pixels: int):
        """Note the pixels, then hold them."""
        self.asked.append(pixels)
        return super().hold(pixels)


@pytest.fixture
def decoder():
    """Make decoders: decoder(limits, budget)."""
    return lambda limits=None, budget=None: Decoder(limits or ImageLimits(), budget or PixelBudget(10**8))


def start(*acts) -> list[threading.Thread]:
    """Start a thread per function; a thread that waits for ever must not hold up the end of the tests."""
    threads = [threading.Thread(target=act, daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    return threads


def finished(threads: list[threading.Thread]) -> bool:
    """Wait for threads; return whether all came to their end."""
    for thread in threads:
        thread.join(120)
    return not any(thread.is_alive() for thread in threads)


def test_threads_never_hold_more_than_the_budget():
    """However many threads ask, what they hold at one time stays within the budget, and all get their turn."""
    budget, lock, held, most = PixelBudget(100), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal held, most
        for pixels in (30, 40, 50, 10, 100, 25, 30, 1):
            with budget.hold(pixels):
                with lock:
                    held += pixels
                    most = max(most, held)
                time.sleep(0.002)
                with lock:
                    held -= pixels

    assert finished(start(*[work] * 8))
    assert held == 0
    assert 50 < most <= 100


def test_a_larger_photo_goes_alone():
    """A photo above the whole budget is decoded, but beside no other."""
    budget, order = PixelBudget(100), []
    inside, leave = threading.Event(), threading.Event()

    def large() -> None:
        with budget.hold(1000):
            order.append("large in")
            inside.set()
            leave.wait(10)
            order.append("large out")

    def small() -> None:
        with budget.hold(1):
            order.append("small in")

    threads = start(large)
    assert inside.wait(10)
    threads += start(small)
    time.sleep(0.05)
    assert order == ["large in"]
    leave.set()
    assert finished(threads)
    assert order == ["large in", "large out", "small in"]


def test_a_larger_photo_waits_for_the_others():
    """A photo above the whole budget does not begin while anything is held."""
    budget, began = PixelBudget(100), threading.Event()

    def large() -> None:
        with budget.hold(1000):
            began.set()

    with budget.hold(1):
        threads = start(large)
        assert not began.wait(0.05)
    assert began.wait(10)
    assert finished(threads)


def test_a_failed_decode_gives_its_pixels_back():
    """An exception inside the block frees what it held."""
    budget = PixelBudget(10)
    with pytest.raises(ValueError, match="damaged"), budget.hold(10):
        raise ValueError("damaged")

    def again() -> None:
        with budget.hold(10):
            pass

    assert finished(start(again))


def test_encoded_photos_are_cropped_as_in_training(decoder, encode):
    """The service's crop of a file is that of penult.bundle.preprocess."""
    data = encode(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    pixels = decoder().crop(EncodedPhoto(data), SPEC)
    np.testing.assert_array_equal(pixels, crop_encoded(data, SPEC))


def test_raw_photos_are_cropped_as_encoded_ones(decoder, encode):
    """Raw RGB gives the crop of the same picture as a PNG file."""
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    pixels = decoder().crop(RawPhoto(40, 30, picture.tobytes()), SPEC)
    np.testing.assert_array_equal(pixels, crop_encoded(encode(picture), SPEC))


def test_a_ready_crop_is_the_input_itself(decoder):
    """Pixels said to be cut already are neither resized nor copied."""
    pixels = np.random.default_rng(0).integers(0, 256, (SPEC.crop, SPEC.crop, 3), dtype=np.uint8)
    data = pixels.tobytes()
    found = decoder().crop(RawPhoto(SPEC.crop, SPEC.crop, data, is_crop=True), SPEC)
    assert np.array_equal(found, pixels)
    assert np.shares_memory(found, np.frombuffer(data, dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), [(SPEC.crop + 1, SPEC.crop), (SPEC.crop, SPEC.crop - 1)])
def test_a_crop_of_another_size_is_refused(decoder, height, width):
    """A crop that is not of the model's size cannot be what the network looks at."""
    with pytest.raises(ImageError) as caught:
        decoder().crop(RawPhoto(height, width, bytes(height * width * 3), is_crop=True), SPEC)
    assert caught.value.reason == "IMAGE_NO_CROP"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_budget_is_asked_for_what_decoding_allocates(decoder, encode, kind):
    """A photo holds the pixels that its decoder will make: all of a PNG's, a scaled JPEG's reduced number."""
    budget = Recorded(10**8)
    decoder(budget=budget).crop(EncodedPhoto(encode(Image.new("RGB", (640, 480)), kind)), SPEC)
    assert budget.asked == [640 * 480 if kind == "PNG" else 80 * 60]


@pytest.mark.parametrize(
    ("limits", "photo", "reason"),
    [
        (ImageLimits(), EncodedPhoto(b""), "IMAGE_EMPTY"),
        (ImageLimits(), EncodedPhoto(b"hello"), "IMAGE_UNKNOWN_FORMAT"),
        (ImageLimits(max_bytes=10), EncodedPhoto(bytes(11)), "IMAGE_TOO_MANY_BYTES"),
        (ImageLimits(max_side=7), RawPhoto(8, 2, bytes(48)), "IMAGE_TOO_MANY_PIXELS"),
        (ImageLimits(), RawPhoto(0, 2, b""), "IMAGE_NO_PIXELS"),
        (ImageLimits(), RawPhoto(2, 2, bytes(11)), "IMAGE_WRONG_LENGTH"),
    ],
)
def test_the_limits_are_kept(decoder, limits, photo, reason):
    """Each limit given to the decoder is kept, with its reason."""
    with pytest.raises(ImageError) as caught:
        decoder(limits).crop(photo, SPEC)
    assert caught.value.reason == reason
