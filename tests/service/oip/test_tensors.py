"""BYTES of the Open Inference Protocol, before anything is decoded: what is counted, and what is found to be text."""

import base64

import pytest

from penult.service.errors import InvalidRequest
from penult.service.oip.tensors import BYTES, IMAGE, Tensor, as_strings, has_text, read_photos

FILE = b"\xff\xd8\xff\xe0 as a JPEG begins"


def images(*items: bytes, count: int = 0) -> Tensor:
    return Tensor(IMAGE, BYTES, (count or len(items),), as_strings(items))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("is_raw", [True, False])
def test_text_is_found_wherever_it_stands(place: int, is_raw: bool):
    """One photo in base64 among files is enough for the request to be read beside the event loop."""
    items = [FILE] * 3
    tensor = images(*items) if is_raw else Tensor(IMAGE, BYTES, (3,), items)
    assert not has_text([tensor], 8)
    items[place] = base64.b64encode(FILE)
    tensor = images(*items) if is_raw else Tensor(IMAGE, BYTES, (3,), items)
    assert has_text([tensor], 8)
    assert [photo.data for photo in read_photos([tensor], 32, 8)] == [FILE] * 3


def test_no_more_elements_are_read_than_the_shape_has():
    """Four bytes are an empty element: a message of 64 MiB holds 16 million, of which no list is made."""
    with pytest.raises(InvalidRequest, match="holds more than 2 elements where its shape says 2"):
        read_photos([Tensor(IMAGE, BYTES, (2,), bytes(4 * 100))], 32, 8)
    # The element behind would lead past the end; it is not reached.
    with pytest.raises(InvalidRequest, match="more than 2 elements"):
        read_photos([Tensor(IMAGE, BYTES, (2,), bytes(12) + b"\xff" * 4)], 32, 8)
    assert not has_text([Tensor(IMAGE, BYTES, (1,), bytes(8) + as_strings([base64.b64encode(FILE)]))], 2)


@pytest.mark.parametrize("data", [b"", b"\x05", b"\xff\xff\xff\xff", as_strings([FILE])[:-1]])
def test_wrong_lengths_are_no_text(data: bytes):
    """Whether there is text can be asked of any bytes; what is wrong with them is found when they are read."""
    assert not has_text([Tensor(IMAGE, BYTES, (1,), data)], 8)
    with pytest.raises(InvalidRequest):
        read_photos([Tensor(IMAGE, BYTES, (1,), data)], 32, 8)
