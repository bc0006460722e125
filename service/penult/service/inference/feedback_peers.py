"""Several workers: a client's feedback may reach another worker than its answer came from, so workers ask each other.

Each worker listens on a socket in the folder of its supervisor, which only this user may open. A question is a line of
JSON, and so is the reply.
"""

import asyncio
import base64
import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penult.service.errors import one_line
from penult.service.inference.decoder import EncodedPhoto, Photo
from penult.service.inference.feedback import FeedbackDesk, Finding
from penult.service.inference.recent_answers import GivenAnswer
from penult.service.inference.unsure import file_of

log = logging.getLogger(__name__)

_NAME = "answers-"
_WAIT_S = 2.0
# A reply holds photos, as base64.
_MAX_BYTES = 256 << 20

Found = tuple[GivenAnswer, Photo | None] | None


class FeedbackPeers:
    """One worker's socket, and the way to those of the others. On the event loop."""

    def __init__(self, folder: Path, desk: FeedbackDesk) -> None:
        """Ask the workers with sockets in `folder`, and answer them from `desk`; nothing listens yet."""
        self._folder, self._desk = folder, desk
        self._own = folder / f"{_NAME}{os.getpid()}"
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer the others from now on, and ask them; log if the system allows no socket."""
        try:
            self._server = await asyncio.start_unix_server(self._answer, self._own, limit=_MAX_BYTES)
        except OSError as error:
            log.warning("workers cannot share answers for feedback: %s", one_line(error))
            return
        self._desk.others = self.ask

    async def ask(self, findings: Sequence[Finding], needs_photos: bool) -> list[Found]:
        """Return the answers of other workers, in order, None for those that no other worker knows."""
        paths = [path for path in self._folder.glob(f"{_NAME}*") if path != self._own]
        question = {"photos": needs_photos, "answers": [[f.request_id, f.index, f.image_id] for f in findings]}
        replies = await asyncio.gather(*(self._ask_one(path, question, findings) for path in paths))
        return [next((found for found in column if found), None) for column in zip(*replies, strict=True)] or [
            None
        ] * len(findings)

    def close(self) -> None:
        """Answer no longer."""
        if self._server:
            self._server.close()
        with contextlib.suppress(OSError):
            self._own.unlink()

    async def _ask_one(self, path: Path, question: dict[str, Any], findings: Sequence[Finding]) -> list[Found]:
        nothing: list[Found] = [None] * len(findings)
        try:
            async with asyncio.timeout(_WAIT_S):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_BYTES)
                try:
                    writer.write(json.dumps(question).encode() + b"\n")
                    reply = json.loads(await reader.readline())
                finally:
                    writer.close()
        except ConnectionRefusedError:  # of a worker that has ended
            path.unlink(missing_ok=True)
            return nothing
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("a worker does not answer about feedback: %s", one_line(error))
            return nothing
        return [_found(each) if each else None for each in reply]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = json.loads(await reader.readline())
            known = [self._desk.find(Finding(*key)) for key in question["answers"]]
            writer.write(json.dumps([_reply(each, question["photos"]) for each in known]).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError) as error:
            log.warning("a question about feedback cannot be answered: %s", one_line(error))
        finally:
            writer.close()


def _reply(found: Found, needs_photo: bool) -> dict[str, Any] | None:
    if found is None:
        return None
    answer, photo = found
    data = base64.b64encode(file_of(photo)[0]).decode() if photo and needs_photo else ""
    return {"answer": asdict(answer), "photo": data}


def _found(reply: dict[str, Any]) -> Found:
    data = base64.b64decode(reply["photo"])
    return GivenAnswer(**reply["answer"]), EncodedPhoto(data) if data else None
