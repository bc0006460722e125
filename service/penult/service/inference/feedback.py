"""What clients found about answers: find the answer that is meant, count the verdict, and keep the photo if wanted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from penult.bundle.errors import PenultError
from penult.service.errors import InvalidRequest, NotFound, NotReady, Overloaded, ServiceError, one_line
from penult.service.inference.corrected_photos import CorrectedPhotos
from penult.service.inference.decoder import Photo
from penult.service.inference.feedback_file import FeedbackFile
from penult.service.inference.recent_answers import GivenAnswer, RecentAnswers
from penult.service.models.registry import ModelRegistry
from penult.service.observability.metric_window import steady_time
from penult.service.observability.truths import NO_CLASS, RIGHT, UNKNOWN, WRONG, Truth

log = logging.getLogger(__name__)

# What a client may say without a label.
IS_RIGHT, IS_WRONG, IS_NO_CLASS, IS_UNKNOWN = VERDICTS = ("right", "wrong", "no_class", "unknown")
MAX_TRUTHS, MAX_ID_BYTES = 1000, 256
# Requests of feedback that wait for the disk.
_MAX_WAITING, _RETRY_MS = 64, 1000


@dataclass(frozen=True)
class ClaimedAnswer:
    """What a client says that it was answered; `probability` is 0 if the client does not know it."""

    model: str
    version: int
    label: str
    probability: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What a client says about one answer: the right class, or one of the verdicts without a label.

    The answer is that of `request_id` and `index`, or that to the image `image_id`. `claimed` stands in for an answer
    that the server has forgotten, `photo` for an image.
    """

    request_id: str
    index: int
    image_id: str
    label: str = ""
    verdict: str = ""
    claimed: ClaimedAnswer | None = None
    photo: Photo | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict that was counted, now or before, and whether the photo is kept."""

    truth: Truth
    is_repeated: bool
    is_photo_kept: bool


# Returns the answers of other processes, and their photos if they are wanted.
Others = Callable[[Sequence[Finding], bool], Awaitable[Sequence[tuple[GivenAnswer, Photo | None] | None]]]


class FeedbackDesk:
    """Receives feedback. On the event loop; files are written by one thread."""

    def __init__(
        self,
        answers: RecentAnswers,
        file: FeedbackFile,
        repository: ModelRegistry,
        photos: CorrectedPhotos | None = None,
    ) -> None:
        """Find answers in `answers`, else by what clients claim. Count in `file`, and keep `photos` unless None."""
        self.answers, self._file, self._repository, self._photos = answers, file, repository, photos
        self._thread = ThreadPoolExecutor(1, "feedback")
        self._waiting = 0
        # Called with each verdict that is new, on the event loop.
        self.listeners: list[Callable[[Truth], None]] = []
        # Set if there are other processes of this server.
        self.others: Others | None = None

    async def give(self, findings: Sequence[Finding], caller: str) -> list[Judged | PenultError]:
        """Count findings, each or its error, in order; at return they are written.

        Raises:
            Overloaded: The file is full, or too many requests wait for it.
            NotReady: The file cannot be written.

        """
        given = [self._given(finding) for finding in findings]
        await self._ask_others(findings, given)
        truths: list[Truth | PenultError] = []
        for finding, (answer, _) in zip(findings, given, strict=True):
            try:
                truths.append(self._truth(finding, answer, caller))
            except PenultError as error:
                truths.append(error)
        good = [(truth, photo) for truth, (_, photo) in zip(truths, given, strict=True) if isinstance(truth, Truth)]
        stored = iter(await self._store(good))
        return [truth if isinstance(truth, PenultError) else next(stored) for truth in truths]

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._thread.shutdown()
        self._file.close()

    def find(self, finding: Finding) -> tuple[GivenAnswer, Photo | None] | None:
        """Return an answer of this process, and its photo if that is held."""
        answer, photo = self._given(finding)
        return (answer, photo) if answer else None

    def _given(self, finding: Finding) -> tuple[GivenAnswer | None, Photo | None]:
        answer = self.answers.find(finding.request_id, finding.index, finding.image_id)
        held = self.answers.photo(answer.request_id, answer.index) if answer else None
        return answer, held or finding.photo

    async def _ask_others(
        self, findings: Sequence[Finding], given: list[tuple[GivenAnswer | None, Photo | None]]
    ) -> None:
        """Fill in the answers that other processes of this server gave."""
        places = [place for place, (answer, _) in enumerate(given) if answer is None]
        if self.others is None or not places:
            return
        found = await self.others([findings[place] for place in places], self._photos is not None)
        for place, theirs in zip(places, found, strict=True):
            if theirs:
                given[place] = theirs[0], theirs[1] or findings[place].photo

    def _truth(self, finding: Finding, answer: GivenAnswer | None, caller: str) -> Truth:
        """Return the verdict on an answer; raise InvalidRequest or NotFound."""
        _check(finding)
        answer = answer or self._claimed(finding)
        if finding.label and finding.label not in answer.classes:
            raise InvalidRequest(
                "LABEL_UNKNOWN",
                f"{answer.model} version {answer.version} has no class {finding.label[:64]!r}; for a photo of none of "
                "its classes, send the verdict no_class",
            )
        label = {IS_RIGHT: answer.label, IS_NO_CLASS: NO_CLASS}.get(finding.verdict, finding.label)
        is_right = finding.verdict == IS_RIGHT or finding.label == answer.label
        outcome = UNKNOWN if finding.verdict == IS_UNKNOWN else RIGHT if is_right else WRONG
        return Truth(
            answer.request_id, answer.index, answer.image_id, answer.model, answer.version, answer.label,
            round(answer.probability, 6), outcome, label, caller, round(steady_time(), 3),
        )  # fmt: skip

    def _claimed(self, finding: Finding) -> GivenAnswer:
        """Return the answer that a client says it got; raise NotFound, or InvalidRequest if it cannot be."""
        claim = finding.claimed
        if claim is None or not claim.label:
            raise NotFound(
                "ANSWER_UNKNOWN",
                "this answer is not known here, or no longer; send with it what the server had answered: model, "
                "version and label",
            )
        model = self._repository.get(claim.model, claim.version)
        if claim.label not in model.manifest.classes:
            raise InvalidRequest(
                "LABEL_UNKNOWN", f"{model.name} version {model.version} cannot have answered {claim.label[:64]!r}"
            )
        return GivenAnswer(
            finding.request_id, finding.index, finding.image_id, model.name, model.version, claim.label,
            claim.probability, model.manifest.classes,
        )  # fmt: skip

    async def _store(self, good: Sequence[tuple[Truth, Photo | None]]) -> list[Judged]:
        """Write verdicts on the thread, and keep their photos."""
        if not good:
            return []
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("FEEDBACK_BUSY", "too much feedback waits for the disk; send it again soon", _RETRY_MS)
        self._waiting += 1
        try:
            # A caller that leaves meanwhile must not stop the thread, which writes all or nothing.
            done = await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._write, good))
        finally:
            self._waiting -= 1
        for judged in done:
            if not judged.is_repeated:
                for listener in self.listeners:
                    listener(judged.truth)
        return done

    def _write(self, good: Sequence[tuple[Truth, Photo | None]]) -> list[Judged]:
        named = [(self._with_photo(truth, photo), photo) for truth, photo in good]
        try:
            are_known = self._file.add([truth for truth, _ in named])
        except ServiceError:
            raise
        except OSError as error:
            log.warning("feedback cannot be written: %s", one_line(error))
            raise NotReady(
                "FEEDBACK_UNWRITABLE", "the server cannot write its file of feedback; try again later", _RETRY_MS
            ) from error
        return [
            Judged(truth, is_known, self._keep(truth, photo))
            for (truth, photo), is_known in zip(named, are_known, strict=True)
        ]

    def _with_photo(self, truth: Truth, photo: Photo | None) -> Truth:
        """Return a verdict with the path that its photo is to have."""
        if not self._photos or photo is None or not truth.label or truth.label == NO_CLASS:
            return truth
        return replace(truth, photo=self._photos.path_of(truth.model, photo))

    def _keep(self, truth: Truth, photo: Photo | None) -> bool:
        """Keep the photo of a verdict, or remove the label of one that has none any more."""
        if not self._photos:
            return False
        if truth.photo and photo is not None:
            return self._photos.keep(truth, photo)
        if photo is not None:
            self._photos.forget(truth.model, photo)
        return False


def _check(finding: Finding) -> None:
    """Raise InvalidRequest for a finding that names no answer, or does not say one thing about it."""
    if not (finding.request_id or finding.image_id):
        raise InvalidRequest("ANSWER_UNNAMED", "name the answer: request_id with index, or image_id")
    check_id(finding.image_id)
    check_id(finding.request_id)
    if bool(finding.label) == bool(finding.verdict):
        raise InvalidRequest("FINDING", "send either the right label or a verdict")
    if finding.verdict and finding.verdict not in VERDICTS:
        raise InvalidRequest("FINDING", f"a verdict is one of {', '.join(VERDICTS)}")


def check_id(name: str) -> None:
    """Raise InvalidRequest for an id that is too long, or that a line of text cannot hold."""
    if len(name.encode(errors="replace")) > MAX_ID_BYTES or not name.isprintable():
        raise InvalidRequest("ID", f"an id is at most {MAX_ID_BYTES} bytes of printable text")
