"""Errors of images and bundles.

PenultError
├── ImageError    this image cannot be used, the others can
└── BundleError   this bundle must not be served
    └── BundleNotFound   there is none
"""


class PenultError(Exception):
    """One line for people, with a stable word for programs.

    `reason` is upper case, e.g. IMAGE_TRUNCATED; it goes into trailing metadata, metrics and logs, so it never holds
    user text. `message` says what is wrong and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ImageError(PenultError):
    """One photo cannot be used."""


class BundleError(PenultError):
    """A bundle must not be served."""


class BundleNotFound(BundleError):
    """No bundle is there."""
