"""What can go wrong with a request, and the one table from that to gRPC's codes.

PenultError (penult.bundle.errors)
├── ImageError           one photo is unusable                      INVALID_ARGUMENT
├── those of collections (penult.lookup.errors)
│   ├── LookupRefused      the request cannot be right              INVALID_ARGUMENT
│   ├── CollectionUnknown  no such collection                       NOT_FOUND
│   ├── CollectionExists   there is another of that name            ALREADY_EXISTS
│   ├── OtherDescriptors   descriptors of another model             FAILED_PRECONDITION
│   └── StoreUnavailable   locked, unreachable or damaged           UNAVAILABLE
├── ConfigError          a setting cannot work                      (the server does not start)
└── ServiceError
    ├── InvalidRequest   the request cannot be right                INVALID_ARGUMENT
    ├── NotFound         no such model or version                   NOT_FOUND
    ├── LacksScorer      the model has no such scorer               FAILED_PRECONDITION
    ├── OtherModel       a descriptor of another model              FAILED_PRECONDITION
    ├── ModelRefused     the version to load is not good            FAILED_PRECONDITION
    ├── Unauthenticated  no token, or one that is not known         UNAUTHENTICATED
    ├── NotAllowed       not with this token, or switched off       PERMISSION_DENIED
    ├── Unsupported      no such method here                        UNIMPLEMENTED
    ├── Overloaded       queue or device are full; try again later  RESOURCE_EXHAUSTED
    ├── NotReady         loading, draining, or the device failed    UNAVAILABLE
    ├── ModelReplaced    the model was unloaded at this moment      UNAVAILABLE
    ├── LookupOff        no collections are kept here               FAILED_PRECONDITION
    ├── NoNeighbours     nothing near enough to vote                NOT_FOUND
    ├── BadOutput        the model gave no finite numbers           INTERNAL
    ├── ClientGone       the client closed its HTTP connection      CANCELLED
    └── TooLate          no answer within the client's timeout      DEADLINE_EXCEEDED

Anything else that is raised is a bug: INTERNAL with an id, details in the log only.
"""

import logging

from penult.bundle.errors import ImageError, PenultError
from penult.lookup.errors import (
    CollectionExists,
    CollectionUnknown,
    LookupRefused,
    OtherDescriptors,
    StoreUnavailable,
)

log = logging.getLogger(__name__)


class ConfigError(PenultError):
    """A setting cannot work."""


class ServiceError(PenultError):
    """A request has no answer. `retry_after_ms` hints when asking again makes sense."""

    def __init__(self, reason: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(reason, message)
        self.retry_after_ms = retry_after_ms


class InvalidRequest(ServiceError):
    """The request cannot be right."""


class NotFound(ServiceError):
    """No such model or version."""


class LacksScorer(ServiceError):
    """The model has no such scorer."""


class OtherModel(ServiceError):
    """A descriptor was made by another model."""


class ModelRefused(ServiceError):
    """The version that should be loaded failed its checks."""


class Unauthenticated(ServiceError):
    """The caller has no valid token or certificate."""


class NotAllowed(ServiceError):
    """The operator has not switched this on, or the token is not good for it."""


class Unsupported(ServiceError):
    """The protocol knows this method, the service does not."""


class Overloaded(ServiceError):
    """The queue, or the device's memory, is full."""


class NotReady(ServiceError):
    """Loading, draining, or the device failed."""


class ModelReplaced(ServiceError):
    """The model was unloaded between its lookup and its use; looked up again, there may be another."""


class LookupOff(ServiceError):
    """No collections are kept here."""


class NoNeighbours(ServiceError):
    """No labelled item is near enough to vote."""


class BadOutput(ServiceError):
    """The model gave no finite numbers."""


class ClientGone(ServiceError):
    """The client closed its HTTP connection."""


class TooLate(ServiceError):
    """There is no answer within the timeout that the client gave."""


# How onnxruntime, CUDA and the C++ library say that memory ran out.
_MEMORY_WORDS = ("out of memory", "failed to allocate", "bad_alloc", "memory allocation", "bfcarena")
_DEVICE_RETRY_MS = 500


def device_error(error: Exception) -> ServiceError:
    """Return the error for a run that failed on the device, with a retry hint and no internal details."""
    if any(word in str(error).lower() for word in _MEMORY_WORDS):
        return Overloaded("DEVICE_MEMORY", "the device has no memory left for this; try again, with fewer images",
                          retry_after_ms=_DEVICE_RETRY_MS)  # fmt: skip
    return NotReady("DEVICE_FAILED", "the device failed at this; try again", retry_after_ms=_DEVICE_RETRY_MS)


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one line for the log."""
    return " ".join(str(error).split())[:300] or type(error).__name__


# Names of gRPC codes: nothing here needs gRPC itself.
CODES: dict[type[PenultError], str] = {
    ImageError: "INVALID_ARGUMENT",
    InvalidRequest: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    LacksScorer: "FAILED_PRECONDITION",
    OtherModel: "FAILED_PRECONDITION",
    ModelRefused: "FAILED_PRECONDITION",
    Unauthenticated: "UNAUTHENTICATED",
    NotAllowed: "PERMISSION_DENIED",
    Unsupported: "UNIMPLEMENTED",
    Overloaded: "RESOURCE_EXHAUSTED",
    NotReady: "UNAVAILABLE",
    ModelReplaced: "UNAVAILABLE",
    LookupOff: "FAILED_PRECONDITION",
    NoNeighbours: "NOT_FOUND",
    LookupRefused: "INVALID_ARGUMENT",
    CollectionUnknown: "NOT_FOUND",
    CollectionExists: "ALREADY_EXISTS",
    OtherDescriptors: "FAILED_PRECONDITION",
    StoreUnavailable: "UNAVAILABLE",
    BadOutput: "INTERNAL",
    ClientGone: "CANCELLED",
    TooLate: "DEADLINE_EXCEEDED",
}


def code_of(error: PenultError) -> str:
    """Return the name of the gRPC code of an error."""
    return CODES.get(type(error), "INTERNAL")


def presentable(error: BaseException, request_id: str, method: str) -> PenultError:
    """Return what a client may see of an error. Log a bug under the request's id and hide its details."""
    if isinstance(error, PenultError):
        return error
    log.exception("request %s of %s failed", request_id, method, exc_info=error)
    return ServiceError("INTERNAL", f"internal error; the server's log has it under request {request_id}")
