"""What can go wrong on the way from photos to a bundle.

PenultError (penult.bundle.errors)
├── DataError       the folder of photos cannot be learnt from
├── SettingsError   the options contradict each other, or the weights do not fit
├── DiskError       a file or folder cannot be read or written (any more)
├── ParityError     the exported model does not answer as the trained network does: nothing is published
└── QuantizeError   the int8 model cannot be made, or loses too much accuracy: it is not published
"""

from penult.bundle.errors import PenultError


class DataError(PenultError):
    """The folder of photos cannot be learnt from."""


class SettingsError(PenultError):
    """The options contradict each other, or the weights do not fit the network."""


class DiskError(PenultError):
    """A file or folder cannot be read or written (any more)."""


class ParityError(PenultError):
    """The exported model does not answer as the trained network does."""


class QuantizeError(PenultError):
    """The int8 model cannot be made, or loses too much accuracy."""
