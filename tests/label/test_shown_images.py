"""Photos as the page shows them: always a JPEG that was made anew, upright, small, and bounded in memory."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from penult.bundle.errors import ImageError
from penult.export.data.splitting import Photo
from penult.label.shown_images import SHOWN, THUMBNAIL, ShownImages, image_url


@pytest.fixture
def show(tmp_path):
    """Return a function that writes a file and returns its picture: show(data, size)."""

    def shown(data: bytes, size: int = SHOWN) -> Image.Image:
        (tmp_path / "photo").write_bytes(data)
        photo = Photo(tmp_path / "photo", -1, hashlib.sha256(data).hexdigest())
        made = ShownImages({photo.sha256: photo}.get).jpeg(photo.sha256, size)
        image = Image.open(io.BytesIO(made))
        assert image.format == "JPEG"
        assert made[:3] != data[:3] or b"evil" not in made
        return image

    return shown


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(width: int, height: int) -> Image.Image:
    """Return an image that is dark on the left and bright on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "wanted", "shown"),
    [((4032, 3024), SHOWN, (1280, 960)), ((4032, 2268), SHOWN, (1280, 720)), ((300, 200), SHOWN, (300, 200)),
     ((3000, 4000), THUMBNAIL, (240, 320)), ((5000, 10), THUMBNAIL, (320, 1))],
)  # fmt: skip
def test_photos_are_scaled_to_fit(show, size, wanted, shown):
    """The longest side is the size asked for, the sides keep their ratio, and a small photo stays as it is."""
    assert show(encoded(halves(*size), "JPEG"), wanted).size == shown


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_every_format_is_shown(show, kind):
    """What a browser cannot show is a JPEG here."""
    pixels = np.asarray(show(encoded(halves(64, 48), kind)).convert("L"))
    assert pixels[:, :28].mean() < 30 < 220 < pixels[:, 36:].mean()


def test_photos_are_upright_and_hold_no_metadata(show):
    """The EXIF orientation is applied, and no EXIF data, such as a place, reaches the browser."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "evil secret"
    shown = show(encoded(halves(64, 48), "JPEG", exif=exif))
    assert shown.size == (48, 64)
    assert np.asarray(shown.convert("L"))[:28].mean() < 30
    assert not shown.getexif()


def test_what_is_no_photo_is_an_error(show):
    """A damaged file, an SVG and HTML raise ImageError, and no byte of theirs comes out."""
    for data in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"", encoded(halves(64, 48), "PNG")[:60]):
        with pytest.raises(ImageError):
            show(data)


def test_pictures_of_late_are_kept_within_their_bytes(tmp_path):
    """A picture is made once; those not shown for long make room."""
    photos = {}
    for n in range(6):
        path = tmp_path / f"{n}.png"
        noise = np.random.default_rng(n).integers(0, 255, (100, 100, 3), np.uint8)
        path.write_bytes(encoded(Image.fromarray(noise), "PNG"))
        photos[str(n)] = Photo(path, -1, str(n))
    images = ShownImages(photos.get, kept_bytes=40_000)
    made = [images.jpeg(str(n), SHOWN) for n in range(6)]
    assert images.jpeg("5", SHOWN) is made[5]
    for photo in photos.values():
        photo.path.unlink()
    assert images.jpeg("5", SHOWN) is made[5]
    with pytest.raises(Exception, match="can no longer be read"):
        images.jpeg("0", SHOWN)
    assert images.jpeg("absent", SHOWN) is None
    assert "0.png" not in image_url(photos["0"])
