"""Labels in a collection: stored with the server's own descriptors, found again by path or content, sent once."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penult.client import Client, NewItem, RequestFailed
from penult.label import stored
from penult.label.errors import LabelError
from penult.label.labels_file import Label, LabelsFile
from penult.label.publishing import Base, Collection, Publisher


@pytest.fixture
def folder(digits: Path, tmp_path: Path) -> Path:
    """Four photos of digits: a0.png and a1.png of 0 and 1, b/2.png, and b/copy.png, a copy of a0.png."""
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    for name, digit in (("a0.png", "0"), ("a1.png", "1"), ("b/2.png", "2"), ("b/copy.png", "0")):
        shutil.copy(sorted((digits / "train" / digit).iterdir())[0], root / name)
    return root


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by path, as the pool has them."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def target(start_server: Callable[..., Any], models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server with a store of its own; each test has a collection of its own."""
    return str(start_server(models, "--lookup", str(tmp_path_factory.mktemp("store") / "lookup")).target)


def test_labels_are_stored_once_and_found_again(target: str, folder: Path, digits: Path):
    """Only changed labels are sent; labels return by path, by content after a rename, and what is absent is counted."""
    photos, labels = hashes(folder), {"a0.png": "zero", "b/2.png": "two"}
    assert stored.store(target, "seen", folder, labels, photos) == stored.Stored(2, 0, ())
    assert stored.store(target, "seen", folder, labels | {"a1.png": "won"}, photos) == stored.Stored(1, 2, ())
    shown: list[tuple[int, int]] = []
    now = labels | {"a1.png": "one"}
    after = stored.store(target, "seen", folder, now, photos, "digits", lambda *counts: shown.append(counts))
    assert (after, shown) == (stored.Stored(1, 2, ()), [(2, 3), (3, 3)])
    with Client(target) as client:
        (item,) = client.get_items("seen", ["a1.png"], descriptors=True)
        (own,) = client.describe([folder / "a1.png"]).results
        assert (item.label, item.descriptor.tolist()) == ("one", pytest.approx(own.tolist(), abs=1e-5))
        client.put_items("seen", [NewItem("gone.png", sorted((digits / "train" / "3").iterdir())[0], label="three")])
    (folder / "b" / "2.png").rename(folder / "renamed.png")
    # The photo at this path is another one now.
    shutil.copy(sorted((digits / "train" / "4").iterdir())[0], folder / "a1.png")
    found = stored.labels_of(target, "seen", hashes(folder))
    assert found.labels == {"a0.png": "zero", "b/copy.png": "zero", "renamed.png": "two"}
    assert found.lines("seen")[1].startswith("2 labelled items are not in the folder")


def test_items_of_other_commands_are_found_by_their_path(target: str, folder: Path):
    """A collection of `penult index add` has no SHA-256; labels are added to it all the same."""
    with Client(target) as client:
        client.put_items("made", [NewItem("a0.png", folder / "a0.png", label="null")])
    photos = hashes(folder)
    assert stored.labels_of(target, "made", photos) == stored.Found({"a0.png": "null"}, 0, 0)
    assert stored.store(target, "made", folder, {"a0.png": "zero", "a1.png": "one"}, photos).put == 2
    assert stored.labels_of(target, "made", photos).labels == {"a0.png": "zero", "a1.png": "one"}


def test_copies_with_several_labels_are_left_to_the_page(target: str, folder: Path, digits: Path):
    """By content, two stored labels contradict each other for a photo that no item names by its path."""
    photos = hashes(folder)
    stored.store(target, "both", folder, {"a0.png": "zero", "b/copy.png": "oh"}, photos)
    (folder / "a0.png").rename(folder / "new.png")
    found = stored.labels_of(target, "both", hashes(folder))
    assert (found.labels, found.unclear) == ({"b/copy.png": "oh"}, 1)


def test_a_photo_that_is_gone_and_an_unknown_collection(target: str, folder: Path):
    """A photo that was removed is named, the others are stored; a wrong name lists the collections that exist."""
    photos = hashes(folder)
    (folder / "a1.png").unlink()
    after = stored.store(target, "gone", folder, {"a0.png": "zero", "a1.png": "one"}, photos)
    assert (after.put, after.failures) == (1, ("a1.png is gone",))
    assert after.line("gone") == "1 label is in collection gone; 1 label is not, as a1.png is gone"
    with pytest.raises(RequestFailed, match="did you mean gone"):
        stored.labels_of(target, "gonne", photos)
    with pytest.raises(RequestFailed, match="does not serve digits version 9"):
        stored.wait_for_version(target, "digits", 9, timeout_s=0)


def test_waiting_for_a_version_can_be_ended(target: str):
    """What is called before each poll ends the waiting, so that Ctrl-C does."""

    def stop() -> None:
        raise LabelError("PUBLISH", "stopped")

    with pytest.raises(LabelError, match="stopped"):
        stored.wait_for_version(target, "digits", 9, on_poll=stop)


def test_without_a_model_publish_only_stores(target: str, folder: Path, tmp_path: Path):
    """The only model of the server describes the photos; a wrong server is one line of the state."""
    file, photos = LabelsFile(tmp_path / "labels.csv", folder), hashes(folder)
    file.put([Label("a0.png", "zero")])
    base = Base(arch="tiny5", weights="none")
    for server, line in ((target, "1 label is in collection only"), ("127.0.0.1:1", "labels are not stored: ")):
        publisher = Publisher(file, folder, None, base, Collection(server, "only", photos))
        publisher.start()
        publisher.wait()
        state = publisher.state()
        assert (state["model"], state["version"], state["message"][: len(line)]) == ("", None, line)
    file.close()
