"""Many photos, as a folder of them: batch by batch, a few on their way at a time, answers in order, under a bar.

Each batch is answered by one version. Where a new one comes meanwhile, later batches have it; every answer says so.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from penult.client.converters import to_image
from penult.client.types import ClassifyAnswer, DescribeAnswer, Photo, PhotoAnswer
from penult.folders.names import PHOTOS, printable
from penult.folders.walk import LeftOut, walk
from penult.interrupts import pool

# Enough to keep a server's batches full, few enough that the bar moves.
BATCH_IMAGES = 32
IN_FLIGHT = 4

Photos = str | Path | Sequence[Photo]
Answer = ClassifyAnswer | DescribeAnswer
_Answer = TypeVar("_Answer", ClassifyAnswer, DescribeAnswer)


class NoPhotos(Exception):
    """A folder holds no photos; the message says what it holds instead."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def photos_in(folder: str | Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the JPEG, PNG and WebP files below a folder, in order of name; hidden ones and their folders are left out.

    Links are followed. `left_out` gets what else is left out. Raises NotADirectoryError, and FileNotFoundError where
    there is no photo.
    """
    root, met = Path(folder), LeftOut() if left_out is None else left_out
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder of photos")
    found = [root / path for path, _ in walk(root, left_out=met)]
    if not found:
        raise FileNotFoundError(none_in(root, met))
    return found


def none_in(root: Path, left_out: LeftOut) -> str:
    """Return one line that a folder holds no photos, and what it holds instead."""
    return "; ".join([f"{printable(str(root))} holds no {PHOTOS} file", *left_out.lines()])


def named_photos(images: Iterable[str]) -> list[str | Path]:
    """Return the photos named, and those in the folders named; note on standard error what is left out of each.

    Raises NoPhotos.
    """
    photos: list[str | Path] = []
    for image in images:
        if Path(image).is_dir():
            left_out = LeftOut()
            try:
                photos += photos_in(image, left_out)
            except FileNotFoundError as error:
                raise NoPhotos(str(error)) from error
            note_left_out(image, left_out)
        else:
            photos.append(image)
    return photos


def note_left_out(folder: str | Path, left_out: LeftOut) -> None:
    """Say on standard error what of a folder is not taken, and why."""
    for line in left_out.lines():
        print(f"note: {printable(str(folder))}: {line}", file=sys.stderr)


def ask_many(
    photos: Photos, ask: Callable[[Sequence[Any]], _Answer], in_flight: int, progress: bool
) -> Iterator[PhotoAnswer[Any]]:
    """Yield an answer per photo, in order; `ask` runs on `in_flight` threads. Raises what it raises."""
    given = _listed(photos)
    pending: deque[tuple[Sequence[Photo], Future[_Answer]]] = deque()
    with pool(in_flight, "penult-client") as threads, Bar(len(given), progress) as bar:
        for batch in _batches(given):
            pending.append((batch, threads.submit(ask, batch)))
            if len(pending) == in_flight:
                yield from bar.counted(*_done(pending.popleft()))
        while pending:
            yield from bar.counted(*_done(pending.popleft()))


async def ask_many_aio(
    photos: Photos, ask: Callable[[Sequence[Any]], Awaitable[_Answer]], in_flight: int, progress: bool
) -> AsyncIterator[PhotoAnswer[Any]]:
    """Yield as ask_many() does; files are read on a thread."""

    async def read_and_ask(batch: Sequence[Photo]) -> _Answer:
        return await ask(await asyncio.to_thread(lambda: [to_image(photo) for photo in batch]))

    given = _listed(photos)
    pending: deque[tuple[Sequence[Photo], asyncio.Task[_Answer]]] = deque()
    with Bar(len(given), progress) as bar:
        try:
            for batch in _batches(given):
                pending.append((batch, asyncio.create_task(read_and_ask(batch))))
                if len(pending) == in_flight:
                    for answer in bar.counted(pending[0][0], await pending.popleft()[1]):
                        yield answer
            while pending:
                for answer in bar.counted(pending[0][0], await pending.popleft()[1]):
                    yield answer
        finally:
            for _, left in pending:
                left.cancel()


def _listed(photos: Photos) -> Sequence[Photo]:
    return photos_in(photos) if isinstance(photos, (str, Path)) else photos


def _batches(photos: Sequence[Photo]) -> Iterator[Sequence[Photo]]:
    for at in range(0, len(photos), BATCH_IMAGES):
        yield photos[at : at + BATCH_IMAGES]


def _done(waiting: tuple[Sequence[Photo], Future[_Answer]]) -> tuple[Sequence[Photo], _Answer]:
    return waiting[0], waiting[1].result()


class Bar:
    """Counts photos on standard error, where that is wanted."""

    def __init__(self, total: int, is_shown: bool) -> None:
        """Show nothing, or a bar up to a total."""
        self._bar: Any = None
        if is_shown:
            from tqdm import tqdm  # the only thing here that the base install lacks

            self._bar = tqdm(total=total, unit="photo", leave=False)

    def add(self, count: int) -> None:
        """Count so many more."""
        if self._bar is not None:
            self._bar.update(count)

    def counted(self, batch: Sequence[Photo], answer: Answer) -> list[PhotoAnswer[Any]]:
        """Count a batch, and return what each of its photos was answered."""
        self.add(len(batch))
        scorer, threshold = (
            (answer.scorer, answer.novelty_threshold) if isinstance(answer, ClassifyAnswer) else ("", None)
        )
        return [
            PhotoAnswer(photo, answer.model, answer.version, answer.fingerprint, scorer, result, threshold)
            for photo, result in zip(batch, answer.results, strict=True)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
