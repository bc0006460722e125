"""Errors of labelling. All are kinds of PenultError: a reason code, and one line that says what to do."""

from penult.bundle.errors import PenultError


class LabelError(PenultError):
    """Labelling cannot begin, or an answer cannot be used."""


class LabelFileError(LabelError):
    """The label file cannot be read or written; nothing has changed."""


class InvalidAnswer(LabelError):
    """An answer names no photo of the folder, or a name that cannot be a class."""


class Conflict(LabelError):
    """A photo has another label than the page that answers has shown."""

    def __init__(self, image: str, label: str | None) -> None:
        """Name the photo, and the label that it has."""
        state = f"has the label {label!r} since" if label is not None else "has no label any more"
        super().__init__("LABEL_CHANGED", f"{image} {state}; look at it again")
        self.image = image
        self.label = label
