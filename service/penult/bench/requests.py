"""The messages to send, serialized before the run, and the counts of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from penult.bench import photos
from penult.bench.settings import LoadSettings
from penult.v1 import penult_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["PenultService"].full_name
_SCORERS = {None: pb.SCORER_UNSPECIFIED, "dense": pb.SCORER_DENSE, "svm": pb.SCORER_SVM}
_STAGES = ("decode_ms", "queue_ms", "inference_ms", "score_ms", "total_ms")
_CROPS = 24


@dataclass(frozen=True)
class Requests:
    """Messages to send in turn, with `images` images in each. `what` describes the images."""

    path: str
    messages: tuple[bytes, ...]
    images: int
    what: str
    is_describe: bool

    @property
    def mean_bytes(self) -> float:
        """Bytes per message."""
        return sum(map(len, self.messages)) / len(self.messages)


@dataclass(frozen=True)
class Answer:
    """One answer: its images, the reasons of those that failed, and the server's stage timings in ms."""

    images: int
    reasons: tuple[str, ...]
    stages_ms: tuple[float, ...]


def prepare(settings: LoadSettings, crop: int) -> Requests:
    """Serialize the messages; `crop` is the model's input side in pixels, for --raw. Raises BenchError."""
    images, what = _images(settings, crop)
    selector = pb.ModelSelector(name=settings.model, version=settings.version)
    count = settings.images_per_request
    messages = []
    for start in range(0, max(len(images), count), count):
        chosen = [images[place % len(images)] for place in range(start, start + count)]
        messages.append(_message(settings, selector, chosen))
    method = ("Stream" if settings.is_stream else "") + settings.rpc.capitalize()
    return Requests(f"/{SERVICE}/{method}", tuple(messages), count, what, settings.rpc == "describe")


def _message(settings: LoadSettings, selector: pb.ModelSelector, images: Sequence[pb.Image]) -> bytes:
    if settings.rpc == "describe":
        return pb.DescribeRequest(model=selector, images=images).SerializeToString()
    return pb.ClassifyRequest(model=selector, images=images, scorer=_SCORERS[settings.scorer]).SerializeToString()


def _images(settings: LoadSettings, crop: int) -> tuple[list[pb.Image], str]:
    if settings.is_raw:
        raws = [
            pb.RawImage(height=crop, width=crop, rgb=rgb, is_crop=True)
            for rgb in photos.noise(crop, _CROPS, settings.seed)
        ]
        return [pb.Image(raw=raw) for raw in raws], f"raw noise of {crop} x {crop} pixels"
    if settings.photos:
        files = photos.read_folder(settings.photos, settings.seed)
        return [pb.Image(encoded=file) for file in files], f"{len(files)} files of {settings.photos}"
    files = photos.made_up(settings.seed)
    return [pb.Image(encoded=file) for file in files], f"{len(files)} made-up JPEGs of 500 x 375 pixels"


def read(answer: bytes, is_describe: bool) -> Answer:
    """Count what an answer holds."""
    response = (pb.DescribeResponse if is_describe else pb.ClassifyResponse).FromString(answer)
    reasons = tuple(result.error.reason for result in response.results if result.HasField("error"))
    timings = response.timings
    return Answer(len(response.results), reasons, tuple(getattr(timings, stage) for stage in _STAGES))


def stage_names() -> Sequence[str]:
    """Name the numbers of `Answer.stages_ms`, in order."""
    return _STAGES


def scorer_names(numbers: Sequence[int]) -> list[str]:
    """Return the names of scorers."""
    return [name for name, number in _SCORERS.items() if name and number in numbers]
