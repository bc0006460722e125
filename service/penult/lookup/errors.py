"""What can go wrong with a collection; the service maps each to a gRPC code."""

from penult.bundle.errors import PenultError


class LookupRefused(PenultError):
    """The request cannot be right."""


class CollectionUnknown(PenultError):
    """There is no such collection."""


class CollectionExists(PenultError):
    """A collection of that name is there, and differs."""


class OtherDescriptors(PenultError):
    """The descriptors are another model's than the collection's."""


class StoreUnavailable(PenultError):
    """The store is locked by another process, cannot be reached, or is damaged."""
