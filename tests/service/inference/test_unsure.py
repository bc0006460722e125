"""`penult serve --keep-unsure`: what is kept over every protocol, once, up to the caps, and never at a request's cost."""

import base64
import hashlib
import io
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.fixtures.gates import eventually

from penult.client import Client
from penult.service.inference import unsure
from penult.service.inference.decoder import EncodedPhoto, RawPhoto

PHOTO = {"content-type": "application/octet-stream"}
# Keeps 60 images of a worker's own in a folder for 70.
WORKER = """
import sys
from pathlib import Path
from penult.service.inference.unsure import KeepLimits, ImageFolder
folder = ImageFolder(KeepLimits(Path(sys.argv[1]), 1, 70, 1 << 20))
print([folder.keep("pets", f"{sys.argv[2]}-{n}.jpg", b"x") for n in range(60)].count(True))
"""


def noise(seed: int) -> np.ndarray:
    """An image of nothing."""
    return np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)


def as_png(pixels: np.ndarray) -> bytes:
    """The bytes of an image's file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def kept(folder: Path) -> dict[str, bytes]:
    """The images that are kept, by their path below the folder."""
    found = (path for path in folder.glob("*/*") if not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def name_of(data: bytes) -> str:
    """Where the model `digits` keeps a PNG."""
    return f"digits/{hashlib.sha256(data).hexdigest()}.png"


def log_lines(server: Any, words: str) -> int:
    """How many lines of the log contain some words."""
    return sum(words in line for line in server.log.read_text().splitlines())


def test_novel_and_improbable_images_are_kept_over_every_protocol(models, digits, start_server, samples, tmp_path):
    """gRPC, OIP and the page keep an image's own bytes once, in files of this user alone; sure answers keep nothing."""
    folder = tmp_path / "seen"
    server = start_server(models, "--http", "--keep-unsure", str(folder), "--keep-unsure-below", "0.2")
    novel = [as_png(noise(seed)) for seed in range(4)]
    sure = sorted((digits / "test" / "0").iterdir())[0].read_bytes()
    with Client(server.target) as client:
        known, strange, _ = client.classify([sure, novel[0], b"no image"]).results
        assert (known.is_novel, known.probability > 0.9, strange.is_novel) == (False, True, True)
        client.classify([novel[0], noise(9)])
        client.describe([novel[1]])
    text = base64.b64encode(novel[2]).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    request = {"inputs": [tensor], "outputs": [{"name": "descriptor"}]}
    httpx.post(f"{server.http}/v2/models/digits/infer", json=request).raise_for_status()
    httpx.post(f"{server.http}/try?model=digits", content=novel[3], headers=PHOTO).raise_for_status()
    eventually(lambda: len(kept(folder)) == 5)
    files = kept(folder)
    assert [files.pop(name_of(data)) for data in novel] == novel
    (pixels,) = files.values()  # raw pixels become a PNG
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pixels))), noise(9))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*/*.png")}
    assert (modes, stat.S_IMODE(folder.stat().st_mode)) == ({0o600}, 0o700)
    assert samples(server.http)["penult_kept_images_total", ("model", "digits"), ("reason", "novel")] == 5
    assert log_lines(server, "images of callers are stored in") == 1


def test_a_low_probability_and_the_cap(models, digits, start_server, samples, tmp_path):
    """Known digits below the bound are kept, up to the cap; then one line is logged, and the rest is counted."""
    folder = tmp_path / "seen"
    options = ("--keep-unsure-below", "1", "--keep-unsure-max-images", "2")
    server = start_server(models, "--keep-unsure", str(folder), *options)
    with Client(server.target) as client:
        photos = sorted((digits / "test" / "8").iterdir())[:9]
        answers = client.classify(photos).results
    unsure_ones = sum(not answer.is_novel and answer.probability < 1 for answer in answers)
    key = ("penult_kept_images_dropped_total", ("reason", "cap"))
    wanted = sum(answer.is_novel or answer.probability < 1 for answer in answers) - 2
    eventually(lambda: samples(server.http)[key] == wanted)
    assert (unsure_ones > 2, len(kept(folder))) == (True, 2)
    assert log_lines(server, "is full, so no more images are kept") == 1


def test_a_folder_that_cannot_be_written_costs_no_request(models, start_server, samples, tmp_path):
    """Every request is answered; one line is logged, and each image that is lost is counted."""
    (tmp_path / "file").write_bytes(b"")
    server = start_server(models, "--keep-unsure", str(tmp_path / "file" / "seen"))
    with Client(server.target) as client:
        for seed in range(3):
            assert client.classify([noise(seed)]).results[0].is_novel
    eventually(lambda: samples(server.http)["penult_kept_images_dropped_total", ("reason", "failed")] == 3)
    assert log_lines(server, "serving continues") == 1


@pytest.mark.parametrize(("images", "size"), [(2, 1 << 20), (9, 20)])
def test_the_folder_is_counted_with_what_was_there(images: int, size: int, tmp_path: Path):
    """Images of earlier servers count; a full folder is counted again later; unfinished files are removed."""
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "old.jpg").write_bytes(bytes(10))
    (tmp_path / "pets" / ".new-x.jpg").write_bytes(bytes(10))
    folder = unsure.ImageFolder(unsure.KeepLimits(tmp_path, 0.5, images, size))
    assert [folder.keep("pets", f"{n}.jpg", bytes(10)) for n in (1, 1, 2)] == [True, False, None]
    assert sorted(kept(tmp_path)) == ["pets/1.jpg", "pets/old.jpg"]
    (tmp_path / "pets" / "old.jpg").unlink()
    assert (folder.keep("cats", "2.jpg", bytes(10)), folder.is_full) == (None, True)
    folder._next_count_s = 0.0  # half a minute later
    assert folder.is_full is False
    assert folder.keep("cats", "2.jpg", bytes(10)) is True
    assert not list(tmp_path.glob("*/.new-*"))


def test_several_workers_keep_to_one_cap(tmp_path: Path):
    """Two processes that fill a folder at the same time stop at the cap together."""
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    made = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert (sum(made), len(kept(tmp_path))) == (70, 70)


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: Callable):
    """While the disk is slow, images beyond the queue's images and bytes are dropped at once."""
    from penult.service.observability.metrics import Metrics

    metrics = Metrics()
    keeper = unsure.UnsureImages(unsure.KeepLimits(tmp_path, 0.5, 999, 1 << 30), metrics)
    monkeypatch.setattr(unsure.threading.Thread, "start", lambda thread: None)  # the disk never answers
    for _ in range(unsure._QUEUE_IMAGES + 3):
        keeper._put("pets", unsure.NOVEL, EncodedPhoto(b"x"))
    assert samples(metrics)["penult_kept_images_dropped_total", ("reason", "queue_full")] == 3
    other = unsure.UnsureImages(unsure.KeepLimits(tmp_path, 0.5, 999, 1 << 30), metrics)
    for _ in range(3):
        other._put("pets", unsure.NOVEL, RawPhoto(1, 1, bytes(unsure._QUEUE_BYTES // 2)))
    assert samples(metrics)["penult_kept_images_dropped_total", ("reason", "queue_full")] == 4


def test_models_of_one_class_keep_novel_images_only(one_class, zeros, start_server, samples, tmp_path):
    """Their probability is a p-value, which is low for many images of the class; the bound does not count."""
    folder = tmp_path / "seen"
    server = start_server(one_class, "--keep-unsure", str(folder), "--keep-unsure-below", "1")
    photos = [*sorted((zeros / "test" / "0").iterdir()), *sorted((zeros / "test" / "1").iterdir())]
    with Client(server.target) as client:
        answers = client.classify(photos, model="zero").results
    wanted = {photo.read_bytes() for photo, answer in zip(photos, answers, strict=True) if answer.is_novel}
    assert 0 < len(wanted) < len(photos)
    eventually(lambda: samples(server.http).get(("penult_kept_images_total", ("model", "zero"), ("reason", "novel"))))
    eventually(lambda: set(kept(folder).values()) == wanted)
