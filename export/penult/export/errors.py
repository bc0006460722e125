"""The errors of training and publishing.

All are kinds of PenultError (penult.bundle.errors) and have a reason code and a message of one line.
"""

from penult.bundle.errors import PenultError


class DataError(PenultError):
    """The folder of photos cannot be used for training."""


class SettingsError(PenultError):
    """Options contradict each other, or the weights do not fit the network."""


class DiskError(PenultError):
    """A file or folder cannot be read or written."""


class ParityError(PenultError):
    """The outputs of the exported model and the trained network differ."""


class ImportModelError(PenultError):
    """A model that was trained elsewhere cannot become a bundle."""


class CalibrateError(PenultError):
    """No threshold can be certified with these photos."""


class QuantizeError(PenultError):
    """The int8 model cannot be made, or loses too much accuracy."""
