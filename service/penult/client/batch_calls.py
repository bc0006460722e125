"""Many images, sent in batches, several in flight at a time; answers come in order.

One version answers each batch. If the server loads a new version meanwhile, later batches use it. Every answer names
its version.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from penult.client.converters import to_image
from penult.client.types import ClassifyAnswer, DescribeAnswer, Photo, PhotoAnswer
from penult.console import Bar
from penult.folders.names import PHOTOS, printable
from penult.folders.walk import LeftOut, walk
from penult.interrupts import pool

# Enough to keep a server's batches full, few enough that progress is visible.
BATCH_IMAGES = 32
IN_FLIGHT = 4

Photos = str | Path | Sequence[Photo]
Answer = ClassifyAnswer | DescribeAnswer
_Answer = TypeVar("_Answer", ClassifyAnswer, DescribeAnswer)


def photos_in(folder: str | Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the image files below a folder, in order of name.

    Links are followed. Hidden files and folders are skipped.

    Args:
        folder: Where to search.
        left_out: Collects what else is skipped.

    Raises:
        NotADirectoryError: `folder` is no folder.
        FileNotFoundError: There is no image in it.
    """
    root = Path(folder)
    left_out = LeftOut() if left_out is None else left_out
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder of photos")
    found = [root / path for path, _ in walk(root, left_out=left_out)]
    if not found:
        raise FileNotFoundError(none_in(root, left_out))
    return found


def none_in(root: Path, left_out: LeftOut) -> str:
    """Return one line: the folder has no images, and what it has instead."""
    return "; ".join([f"{printable(str(root))} holds no {PHOTOS} file", *left_out.lines()])


def ask_many(
    photos: Photos, ask: Callable[[Sequence[Any]], _Answer], in_flight: int, progress: bool
) -> Iterator[PhotoAnswer[Any]]:
    """Yield an answer per image, in order; `ask` runs on `in_flight` threads. Raises what `ask` raises."""
    given = _listed(photos)
    pending: deque[tuple[Sequence[Photo], Future[_Answer]]] = deque()
    with pool(in_flight, "penult-client") as threads, Bar(len(given), progress) as bar:

        def first() -> list[PhotoAnswer[Any]]:
            batch, waiting = pending.popleft()
            answers = _answers(batch, waiting.result())
            bar.add(len(batch))
            return answers

        for batch in _batches(given):
            pending.append((batch, threads.submit(ask, batch)))
            if len(pending) == in_flight:
                yield from first()
        while pending:
            yield from first()


async def ask_many_aio(
    photos: Photos, ask: Callable[[Sequence[Any]], Awaitable[_Answer]], in_flight: int, progress: bool
) -> AsyncIterator[PhotoAnswer[Any]]:
    """Yield as ask_many() does; files are read on a thread."""

    async def read_and_ask(batch: Sequence[Photo]) -> _Answer:
        return await ask(await asyncio.to_thread(lambda: [to_image(photo) for photo in batch]))

    given = _listed(photos)
    pending: deque[tuple[Sequence[Photo], asyncio.Task[_Answer]]] = deque()
    with Bar(len(given), progress) as bar:

        async def first() -> list[PhotoAnswer[Any]]:
            answer = await pending[0][1]
            batch, _ = pending.popleft()
            bar.add(len(batch))
            return _answers(batch, answer)

        try:
            for batch in _batches(given):
                pending.append((batch, asyncio.create_task(read_and_ask(batch))))
                if len(pending) == in_flight:
                    for each in await first():
                        yield each
            while pending:
                for each in await first():
                    yield each
        finally:
            for _, left in pending:
                left.cancel()


def _listed(photos: Photos) -> Sequence[Photo]:
    return photos_in(photos) if isinstance(photos, (str, Path)) else photos


def _batches(photos: Sequence[Photo]) -> Iterator[Sequence[Photo]]:
    for at in range(0, len(photos), BATCH_IMAGES):
        yield photos[at : at + BATCH_IMAGES]


def _answers(batch: Sequence[Photo], answer: Answer) -> list[PhotoAnswer[Any]]:
    """Return one answer per image of a batch."""
    more: tuple[float | None, ...] = ()
    if isinstance(answer, ClassifyAnswer):
        more = answer.novelty_threshold, answer.max_error
    scorer = answer.scorer if isinstance(answer, ClassifyAnswer) else ""
    return [
        PhotoAnswer(photo, answer.model, answer.version, answer.fingerprint, scorer, result, *more)
        for photo, result in zip(batch, answer.results, strict=True)
    ]
