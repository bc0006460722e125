"""Many photos, as a folder of them: batch by batch, a few on their way at a time, answers in order, under a bar.

Each batch is answered by one version. Where a new one comes meanwhile, later batches have it; every answer says so.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from penult.client.messages import to_image
from penult.client.types import ClassifyAnswer, DescribeAnswer, Photo, PhotoAnswer
from penult.interrupts import pool

# Enough to keep a server's batches full, few enough that the bar moves.
BATCH_IMAGES = 32
IN_FLIGHT = 4
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

Photos = str | Path | Sequence[Photo]
Answer = ClassifyAnswer | DescribeAnswer
_Answer = TypeVar("_Answer", ClassifyAnswer, DescribeAnswer)


def photos_in(folder: str | Path) -> list[Path]:
    """Return the JPEG, PNG and WebP files below a folder, in order of name; hidden ones and their folders are left out.

    Raises NotADirectoryError, and FileNotFoundError where there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder of photos")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and _is_shown(p.relative_to(root)))
    if not found:
        raise FileNotFoundError(f"{root} holds no JPEG, PNG or WebP file")
    return found


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


def _is_shown(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


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
        scorer = answer.scorer if isinstance(answer, ClassifyAnswer) else ""
        return [
            PhotoAnswer(photo, answer.model, answer.version, answer.fingerprint, scorer, result)
            for photo, result in zip(batch, answer.results, strict=True)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
