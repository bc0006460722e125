"""The latest answers, in memory, so that feedback need only name them. Photos are held only if that is switched on."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from penult.bundle.errors import ImageError
from penult.service.inference.decoder import Photo, size_bytes
from penult.service.inference.results import Answer, Outcome
from penult.service.inference.shadow import Shadows
from penult.service.models.loader import ServedModel
from penult.service.observability.logs import request_id


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """One answer that was given, and the classes that its model has."""

    request_id: str
    index: int
    image_id: str
    model: str
    version: int
    label: str
    probability: float
    classes: Sequence[str]


@dataclass(slots=True)
class _Response:
    model: str
    version: int
    classes: Sequence[str]
    # None for an image without an answer.
    best: list[tuple[str, float] | None]
    image_ids: Sequence[str]


class RecentAnswers:
    """The answers of the latest responses, from any thread."""

    def __init__(self, max_images: int, max_photo_bytes: int = 0, shadows: Shadows | None = None) -> None:
        """Remember the answers to at most so many images, and photos of so many bytes in all.

        `shadows` see a share of the photos.
        """
        self._shadows = shadows
        self._max_images, self._max_photo_bytes = max_images, max_photo_bytes
        self._responses: OrderedDict[str, _Response] = OrderedDict()
        self._by_image: dict[str, tuple[str, int]] = {}
        self._photos: OrderedDict[tuple[str, int], Photo] = OrderedDict()
        self._images = self._bytes = 0
        self._lock = threading.Lock()

    def needs_photos(self, model: ServedModel, scorer: str, key: str) -> bool:
        """Return whether the photos of a response are needed: to store labelled ones, or for a shadow."""
        return self._max_photo_bytes > 0 or (self._shadows is not None and self._shadows.wants(model, scorer, key))

    def remember(
        self,
        model: ServedModel,
        outcomes: Sequence[Outcome],
        images: Sequence[Photo | ImageError] = (),
        image_ids: Sequence[str] = (),
        key: str = "",
        scorer: str = "",
        seconds: float = 0.0,
    ) -> str:
        """Remember the answers of a response of a model; return what feedback names it by.

        Args:
            model: What answered.
            outcomes: One per image, in order, with classes.
            images: The images, if needs_photos().
            image_ids: The client's names of the images; empty for none.
            key: The id of the response; "" for the current request's.
            scorer: What scored; a shadow sees answers of the default scorer only.
            seconds: How long the image of a request with one took, without waiting; 0 if unknown.

        """
        best = [
            (o.classes[0].label, o.classes[0].probability) if isinstance(o, Answer) and o.classes else None
            for o in outcomes
        ]
        return self.remember_best(model, best, images, image_ids, key, scorer, seconds)

    def remember_best(
        self,
        model: ServedModel,
        best: list[tuple[str, float] | None],
        images: Sequence[Photo | ImageError] = (),
        image_ids: Sequence[str] = (),
        key: str = "",
        scorer: str = "",
        seconds: float = 0.0,
    ) -> str:
        """Remember the best class of each image and its probability; None for an image without an answer."""
        key = key or request_id.get()
        response = _Response(model.name, model.version, model.manifest.classes, best, image_ids)
        with self._lock:
            self._forget(key)
            self._responses[key] = response
            self._images += len(best)
            for index, image_id in enumerate(image_ids):
                if image_id:
                    self._by_image[image_id] = key, index
            if self._max_photo_bytes:
                self._hold(key, best, images)
            while self._images > self._max_images and len(self._responses) > 1:
                self._forget(next(iter(self._responses)))
        if self._shadows and images and self._shadows.wants(model, scorer, key):
            self._shadows.offer(model, key, best, images, seconds)
        return key

    def find(self, key: str, index: int, image_id: str) -> GivenAnswer | None:
        """Return an answer by response and place, or by image id if `key` is ""; None if it is not known."""
        with self._lock:
            if not key:
                key, index = self._by_image.get(image_id, ("", 0))
            response = self._responses.get(key)
            if response is None or index >= len(response.best) or (best := response.best[index]) is None:
                return None
            named = response.image_ids[index] if response.image_ids else ""
        return GivenAnswer(
            key, index, named or image_id, response.model, response.version, *best, classes=response.classes
        )

    def photo(self, key: str, index: int) -> Photo | None:
        """Return the photo of an answer; None if it is not held."""
        with self._lock:
            return self._photos.get((key, index))

    def _hold(self, key: str, best: Sequence[object], images: Sequence[Photo | ImageError]) -> None:
        for index, image in enumerate(images):
            if best[index] is None or isinstance(image, ImageError) or size_bytes(image) > self._max_photo_bytes:
                continue
            self._photos[key, index] = image
            self._bytes += size_bytes(image)
        while self._bytes > self._max_photo_bytes:
            self._bytes -= size_bytes(self._photos.popitem(last=False)[1])

    def _forget(self, key: str) -> None:
        response = self._responses.pop(key, None)
        if response is None:
            return
        self._images -= len(response.best)
        for index in range(len(response.best)):
            if photo := self._photos.pop((key, index), None):
                self._bytes -= size_bytes(photo)
        for index, image_id in enumerate(response.image_ids):
            if self._by_image.get(image_id) == (key, index):
                del self._by_image[image_id]
