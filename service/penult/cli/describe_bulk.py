"""`penult describe … --out FILE`: the descriptors of any number of images in one Parquet file.

A run can be resumed. A few threads read files and send requests. Rows are written in the order of the images, so that
the rows on the disk are always those of the first images. Memory holds the images of a few requests and the rows of one
part.
"""

import argparse
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from penult.cli.arguments import client_of, note_left_out
from penult.client.batch_calls import none_in
from penult.client.sync_client import Client
from penult.client.tools.parquet import Described, Row
from penult.client.tools.parquet_parts import Parts, PartsError, described_by
from penult.client.tools.photo_sources import Column, Folder, ListFile, Source, Wanted
from penult.client.types import DescribeAnswer, ItemFailure, RequestFailed
from penult.console import Bar, has_bar

# Enough requests in flight that the server never waits, and small enough that answers come steadily.
_BATCH_IMAGES, _IN_FLIGHT = 16, 6
# A server that restarts is back within this time; gRPC's own retries end after some seconds.
_PATIENCE_S, _MAX_PAUSE_S = 60.0, 4.0
_TRANSIENT = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"}


def describe_all(arguments: argparse.Namespace) -> int:
    """Describe all photos into a file; return 1 if any has an error. Raises RequestFailed, PartsError."""
    with _one_line_errors():
        source = _source(arguments)
        if next(iter(source.ids()), None) is None:
            raise PartsError(_nothing(source))
        with (
            Parts.open(arguments.out, arguments.restart) as parts,
            client_of(arguments) as client,
        ):
            described = parts.described = _pin(arguments, client, parts.described)
            _check_same(source, parts)
            with _keeping(parts), Bar(source.count() if has_bar() else 0) as bar:
                bar.add(parts.rows)
                with closing(_rows(source.items(parts.rows), client, described)) as found:
                    for rows in found:
                        parts.add(rows)
                        bar.add(len(rows))
                parts.flush()
            if not parts.rows:
                raise PartsError(_nothing(source))
            failed = parts.finish()
        if isinstance(source, Folder):
            note_left_out(source.root, source.left_out)
    return _print(arguments, described, parts.rows, failed)


def _source(arguments: argparse.Namespace) -> Source:
    """Return the source of the images. Raises OSError, RequestFailed, PartsError."""
    if len(arguments.images) > 1 or (arguments.list and arguments.source):
        raise PartsError("--out needs one FOLDER, or --list, or --from")
    root = Path(arguments.images[0] if arguments.images else "")
    if arguments.list:
        return ListFile(arguments.list, root)
    if arguments.source:
        return Column(arguments.source, arguments.column, arguments.id_column, root)
    if not arguments.images:
        raise PartsError("name a FOLDER of photos, or --list FILE, or --from FILE.parquet")
    return Folder(root)


def _nothing(source: Source) -> str:
    """Return one line: a source has no images."""
    return none_in(source.root, source.left_out) if isinstance(source, Folder) else "it names no photo"


def _pin(arguments: argparse.Namespace, client: Client, so_far: Described | None) -> Described:
    """Return the model and version of the whole run: that of the parts if there are any, else the server's."""
    name = arguments.model or (so_far.model if so_far else "")
    version = arguments.version or (so_far.version if so_far else 0)
    try:
        model = client.get_model(name, version)
    except RequestFailed as error:
        if so_far and error.reason in ("VERSION_UNKNOWN", "MODEL_UNKNOWN"):
            raise PartsError(_gone(so_far, error)) from error
        raise
    found = Described(model.version.name, model.version.version, model.version.fingerprint, model.descriptor_length)
    if so_far and so_far != found:
        raise PartsError(
            f"{arguments.out} was started with {described_by(so_far)}, and this is {described_by(found)}; --restart "
            "starts again, another --out keeps both"
        )
    return found


def _gone(described: Described, error: RequestFailed) -> str:
    pin = f"--pin {described.model}={described.version}"
    return (
        f"{described_by(described)} is no longer served ({error.message}); serve it again (penult serve {pin}), or "
        "start again with --restart"
    )


def _check_same(source: Source, parts: Parts) -> None:
    """Check that the stored rows are of the first images, so that their number says where to resume."""
    for number, (stored, wanted) in enumerate(zip(parts.ids(), chain(source.ids(), repeat(None)), strict=False)):
        if stored != wanted:
            raise PartsError(
                f"the photos have changed: number {number} was {stored[:80]!r}, now it is {str(wanted)[:80]!r}; "
                "--restart starts again"
            )


# -- sending -----------------------------------------------------------------------------------------------------------


def _rows(items: Iterator[Wanted], client: Client, described: Described) -> Generator[list[Row], None, None]:
    """Yield the rows of all photos, batch by batch, in order. Raises RequestFailed, PartsError."""
    is_over = threading.Event()

    def ask(batch: Sequence[Wanted]) -> list[Row]:
        photos = [wanted.photo for wanted in batch]
        answer = _with_patience(lambda: _ask(client, photos, described), is_over)
        return [_row(wanted, result) for wanted, result in zip(batch, answer.results, strict=True)]

    pool = ThreadPoolExecutor(_IN_FLIGHT, "penult-client")
    pending: deque[Future[list[Row]]] = deque()
    try:
        while batch := list(islice(items, _BATCH_IMAGES)):
            pending.append(pool.submit(ask, batch))
            # Some batches wait, so that no thread is idle while the oldest answer is pending.
            if len(pending) > 2 * _IN_FLIGHT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        is_over.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(client: Client, photos: Sequence[Any], described: Described) -> DescribeAnswer:
    answer = client.describe(photos, model=described.model, version=described.version)
    # Empty if no image could be read, so that no request was sent.
    if answer.fingerprint not in ("", described.fingerprint):
        raise PartsError(
            f"the server has another {described.model} version {described.version} now; start again with --restart"
        )
    return answer


def _with_patience(ask: Callable[[], DescribeAnswer], is_over: threading.Event) -> DescribeAnswer:
    """Repeat a request while its failure may be transient."""
    until_s, pause_s = time.monotonic() + _PATIENCE_S, 0.5
    while True:
        try:
            return ask()
        except RequestFailed as error:
            if error.code not in _TRANSIENT or time.monotonic() > until_s or is_over.wait(pause_s):
                raise
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def _row(wanted: Wanted, result: object) -> Row:
    if isinstance(result, ItemFailure):
        return Row(wanted.id, wanted.label, None, f"{result.code}: {result.message}")
    return Row(wanted.id, wanted.label, result, None)


# -- ends --------------------------------------------------------------------------------------------------------------


@contextmanager
def _keeping(parts: Parts) -> Iterator[None]:
    """Write the rows received when a run ends early, and report how to resume."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        parts.flush()
        raise PartsError(f"interrupted; {_go_on(parts)}") from stopped
    except (OSError, PartsError):
        parts.flush()
        raise
    except RequestFailed as error:
        parts.flush()
        if error.reason in ("VERSION_UNKNOWN", "MODEL_UNKNOWN") and parts.described:
            raise PartsError(_gone(parts.described, error)) from error
        raise PartsError(f"{error.message}; {_go_on(parts)}") from error


def _go_on(parts: Parts) -> str:
    return f"{parts.rows} photos are kept; the same command resumes there"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise PartsError(what) from error


def _print(arguments: argparse.Namespace, described: Described, rows: int, failed: int) -> int:
    if arguments.json:
        by = {name: value for name, value in vars(described).items() if name != "length"}
        print(json.dumps({"out": str(arguments.out), "photos": rows, "failed": failed} | by))
    else:
        print(f"{rows} photos are in {arguments.out}, described by {described_by(described)}")
        if failed:
            print(f"{failed} of them could not be described; the column error has the reasons")
    return 1 if failed else 0
