"""Photos to pixels, off the event loop, metered by pixels so that a few huge photos cannot use up the memory."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from penult.bundle.guards import ImageLimits
from penult.bundle.preprocess import Pixels, Preprocess, crop_opened, crop_rgb, open_image, ready_crop


@dataclass(frozen=True)
class EncodedPhoto:
    """The bytes of a JPEG, PNG or WebP file."""

    data: bytes


@dataclass(frozen=True)
class RawPhoto:
    """Decoded pixels: `rgb` has height * width * 3 bytes; `is_crop`: they are the network's input as they are."""

    height: int
    width: int
    rgb: bytes
    is_crop: bool = False


Photo = EncodedPhoto | RawPhoto


class PixelBudget:
    """Lets threads decode at most `most_pixels` at one time; a single larger photo goes alone."""

    def __init__(self, most_pixels: int) -> None:
        """Start with nothing in use."""
        self._most, self._used = most_pixels, 0
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for `pixels`, and take it for as long as the block runs."""
        with self._freed:
            self._freed.wait_for(lambda: self._used == 0 or self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._freed:
                self._used -= pixels
                self._freed.notify_all()


class Decoder:
    """Decodes photos on its own threads."""

    def __init__(self, threads: int, limits: ImageLimits, budget: PixelBudget) -> None:
        """Start no thread yet; they come with the first photos."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._limits, self._budget = limits, budget

    async def crop(self, photo: Photo, spec: Preprocess) -> tuple[Pixels, float]:
        """Return the network's input, uint8 [crop, crop, 3], and the seconds that decoding took; raise ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._crop, photo, spec)

    def close(self) -> None:
        """Stop the threads once they are done."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _crop(self, photo: Photo, spec: Preprocess) -> tuple[Pixels, float]:
        started = time.perf_counter()
        if isinstance(photo, RawPhoto):
            read = ready_crop if photo.is_crop else crop_rgb
            pixels = read(photo.rgb, photo.height, photo.width, spec, self._limits)
        else:
            image = open_image(photo.data, self._limits, spec)
            with self._budget.hold(image.width * image.height):
                pixels = crop_opened(image, spec)
        return pixels, time.perf_counter() - started
