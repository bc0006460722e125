"""Every error of a request has one place in the tree and one gRPC code, as the module's own drawing says."""

import re

import grpc
import pytest

from penult.bundle.errors import BundleError, ImageError, PenultError
from penult.lookup import errors as lookup_errors
from penult.service import errors


def test_every_service_error_has_a_code():
    """No error of the service or of collections is missing in the table, so none falls through to INTERNAL by accident."""
    of_collections = {
        kind for kind in vars(lookup_errors).values() if isinstance(kind, type) and kind is not PenultError
    }
    assert len(of_collections) == 5
    assert set(errors.ServiceError.__subclasses__()) | of_collections == set(errors.CODES) - {ImageError}


def test_the_drawn_tree_is_the_table():
    """The tree at the top of errors.py names exactly the classes and codes of the table."""
    drawn = dict(re.findall(r"── (\w+) .* ([A-Z_]+)$", errors.__doc__, re.MULTILINE))
    assert drawn == {kind.__name__: code for kind, code in errors.CODES.items()}


def test_unknown_is_never_answered():
    """UNKNOWN is no error's code: clients could not tell it from a fault of gRPC itself."""
    assert set(errors.CODES.values()) <= set(grpc.StatusCode.__members__) - {"UNKNOWN"}


@pytest.mark.parametrize("error", [PenultError("A", "b"), BundleError("A", "b"), errors.ServiceError("A", "b")])
def test_what_is_not_in_the_table_is_internal(error):
    """An error that no table entry explains is our fault, never the client's."""
    assert errors.code_of(error) == "INTERNAL"


def test_errors_carry_a_reason_a_message_and_a_hint():
    """An error gives programs a stable word, people a line, and clients the time after which to try again."""
    error = errors.Overloaded("QUEUE_FULL", "the server is busy", retry_after_ms=200)
    assert (error.reason, error.message, str(error)) == ("QUEUE_FULL", "the server is busy", "the server is busy")
    assert error.retry_after_ms == 200
    assert errors.NotFound("MODEL_UNKNOWN", "no such model").retry_after_ms is None
