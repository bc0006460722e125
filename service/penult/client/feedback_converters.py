"""Between the messages of feedback and plain values, both ways."""

from collections.abc import Sequence

from penult.client.converters import item_failure, to_image
from penult.client.types import ItemFailure, Judged, Truth
from penult.v1 import penult_pb2 as pb

_VERDICTS = {
    "right": pb.VERDICT_RIGHT, "wrong": pb.VERDICT_WRONG, "no_class": pb.VERDICT_NO_CLASS,
    "unknown": pb.VERDICT_UNKNOWN,
}  # fmt: skip
_OUTCOMES = {pb.OUTCOME_RIGHT: "right", pb.OUTCOME_WRONG: "wrong", pb.OUTCOME_UNKNOWN: "unknown"}


def feedback_request(truths: Sequence[Truth]) -> pb.FeedbackRequest:
    """Return the request that sends truths; raise ValueError for one that says nothing, or two things."""
    return pb.FeedbackRequest(truths=[_message(truth) for truth in truths])


def judged(response: pb.FeedbackResponse) -> tuple[Judged | ItemFailure, ...]:
    """Return the results of a response."""
    return tuple(_result(each) for each in response.results)


def _message(truth: Truth) -> pb.Truth:
    if bool(truth.label) == bool(truth.verdict) or (truth.verdict and truth.verdict not in _VERDICTS):
        raise ValueError(f"a truth has a label, or a verdict out of {', '.join(_VERDICTS)}")
    message = pb.Truth(request_id=truth.request_id, index=truth.index, image_id=truth.image_id)
    if truth.label:
        message.label = truth.label
    else:
        message.verdict = _VERDICTS[truth.verdict]
    if truth.answered:
        message.answer.CopyFrom(
            pb.GivenAnswer(
                model=truth.model, version=truth.version, label=truth.answered, probability=truth.probability
            )
        )
    image = None if truth.photo is None else to_image(truth.photo)
    if isinstance(image, pb.Image):
        message.image.CopyFrom(image)
    return message


def _result(result: pb.FeedbackResult) -> Judged | ItemFailure:
    if result.WhichOneof("outcome") == "error":
        return item_failure(result.error)
    found, answer = result.judged, result.judged.answer
    return Judged(
        _OUTCOMES.get(found.outcome, ""), answer.model, answer.version, answer.label, found.is_repeated,
        found.is_photo_kept,
    )  # fmt: skip
