"""Between the messages of Feedback and plain values, both ways."""

from penult.bundle.errors import ImageError, PenultError
from penult.service.errors import InvalidRequest
from penult.service.grpc import converters
from penult.service.inference.feedback import (
    IS_NO_CLASS,
    IS_RIGHT,
    IS_UNKNOWN,
    IS_WRONG,
    MAX_TRUTHS,
    ClaimedAnswer,
    FeedbackDesk,
    Finding,
    Judged,
)
from penult.service.observability.call import caller
from penult.service.observability.truths import RIGHT, UNKNOWN, WRONG
from penult.v1 import penult_pb2 as pb

_VERDICTS: dict[int, str] = {
    pb.VERDICT_RIGHT: IS_RIGHT, pb.VERDICT_WRONG: IS_WRONG, pb.VERDICT_NO_CLASS: IS_NO_CLASS,
    pb.VERDICT_UNKNOWN: IS_UNKNOWN,
}  # fmt: skip
_OUTCOMES = {RIGHT: pb.OUTCOME_RIGHT, WRONG: pb.OUTCOME_WRONG, UNKNOWN: pb.OUTCOME_UNKNOWN}


async def answer(desk: FeedbackDesk, request: pb.FeedbackRequest) -> pb.FeedbackResponse:
    """Count what a request says; raise PenultError if nothing of it can be counted."""
    converters.check_count(len(request.truths), MAX_TRUTHS, "truths")
    results = await desk.give([_finding(truth) for truth in request.truths], caller())
    return pb.FeedbackResponse(results=[_result(each) for each in results])


def _finding(truth: pb.Truth) -> Finding:
    """Return what a message says; raise InvalidRequest for a verdict that this server does not know."""
    if truth.verdict and truth.verdict not in _VERDICTS:
        raise InvalidRequest("FINDING", "unknown verdict; this server is older than the client")
    claim = truth.answer
    photo = converters.photo(truth.image) if truth.HasField("image") else None
    return Finding(
        truth.request_id, truth.index, truth.image_id, truth.label, _VERDICTS.get(truth.verdict, ""),
        ClaimedAnswer(claim.model, claim.version, claim.label, claim.probability) if truth.HasField("answer") else None,
        None if isinstance(photo, ImageError) else photo,
    )  # fmt: skip


def _result(found: Judged | PenultError) -> pb.FeedbackResult:
    if isinstance(found, PenultError):
        return pb.FeedbackResult(error=converters.item_error(found))
    truth = found.truth
    return pb.FeedbackResult(
        judged=pb.JudgedAnswer(
            outcome=_OUTCOMES[truth.outcome],
            answer=pb.GivenAnswer(
                model=truth.model, version=truth.version, label=truth.answered, probability=truth.probability
            ),
            is_repeated=found.is_repeated,
            is_photo_kept=found.is_photo_kept,
        )
    )
