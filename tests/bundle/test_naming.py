"""One place derives names and versions from paths: a folder is called the same by a server and by every command."""

from pathlib import Path

import pytest

from penult.bundle.errors import BundleError
from penult.bundle.manifest import Manifest
from penult.bundle.naming import (
    meant_model,
    meant_repository,
    model_name,
    name_to_publish,
    versions,
)
from penult.bundle.reader import read_bundle
from penult.bundle.writer import publish


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """models/pets with versions 1 and 3, models/birds with version 1, links to both, and links that lead nowhere."""
    for place in ("pets/1", "pets/3", "birds/1", "notes", "pets/report"):
        (tmp_path / "models" / place).mkdir(parents=True)
    for manifest in ("pets/1", "pets/3", "birds/1"):
        (tmp_path / "models" / manifest / "manifest.json").write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for link, target in (("cats", "../models/pets"), ("kittens", "cats"), ("lost", "nowhere"), ("loop", "loop")):
        (elsewhere / link).symlink_to(target)
    (elsewhere / "dogs").mkdir()
    (elsewhere / "dogs" / "7").symlink_to("../../models/pets/3")
    for version, target in (("8", "nowhere"), ("9", "9"), ("latest", "7")):
        (elsewhere / "dogs" / version).symlink_to(target)
    (elsewhere / "all").symlink_to("../models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("path", "name", "numbers"),
    [
        ("models/pets", "pets", [1, 3]), ("models/pets/", "pets", [1, 3]), ("models/./pets", "pets", [1, 3]),
        ("models/pets/1/..", "pets", [1, 3]), ("elsewhere/cats", "cats", [1, 3]), ("elsewhere/kittens", "kittens", [1, 3]),
        ("elsewhere/all/pets", "pets", [1, 3]), ("elsewhere/dogs", "dogs", [7]), ("elsewhere/lost", "lost", []),
        ("elsewhere/loop", "loop", []), ("models/absent", "absent", []),
    ],
)  # fmt: skip
def test_the_path_names_the_model_not_what_it_leads_to(repository: Path, path: str, name: str, numbers: list[int]):
    """A link's own name counts, over any number of links; a version that leads nowhere is none."""
    folder = Path(f"{repository.parent}/{path}")
    assert (model_name(folder), versions(folder)) == (name, numbers)
    assert name_to_publish(folder) == name


def test_the_current_folder_has_its_own_name(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Inside a model's folder "." is the model, and ".." is what holds it."""
    monkeypatch.chdir(repository / "pets")
    assert model_name(Path()) == "pets"
    monkeypatch.chdir(repository / "pets" / "1")
    assert model_name(Path("..")) == "pets"


@pytest.mark.parametrize("path", ["my pets", "pets.v2", "ä", "x" * 65])
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, path: str):
    """The name must do for a folder, a metric and a request; a link to a good name does not help, one with one does."""
    with pytest.raises(BundleError, match="a model name is"):
        model_name(tmp_path / path)
    (tmp_path / path).mkdir()
    (tmp_path / "pets").symlink_to(path)
    assert model_name(tmp_path / "pets") == "pets"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("models", "models is a repository of models (birds, pets), not a model; name one of them, as models/birds"),
        ("models/pets/3", "did you mean models/pets --version 3?"), ("elsewhere/dogs/7", "elsewhere/dogs --version 7?"),
        ("models/pest", "did you mean models/pets?"), ("models/quite-other", ""), ("absent/pets", ""),
    ],
)  # fmt: skip
def test_what_is_no_model_is_told_apart(repository: Path, monkeypatch: pytest.MonkeyPatch, path: str, hint: str):
    """A repository, a version and a misspelt name given for a model are named as what they are, in one line."""
    monkeypatch.chdir(repository.parent)
    with pytest.raises(BundleError, match=path) as caught:
        read_bundle(Path(path))
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.message.endswith(hint or "make one with penult train")
    assert "\n" not in caught.value.message
    assert bool(meant_model(Path(path))) == bool(hint)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("models/pets", "--models models?"), ("models/pets/1", "--models models?"), ("elsewhere/cats", "--models elsewhere?"),
        ("models", ""), ("models/notes", ""), ("absent", ""),
    ],
)  # fmt: skip
def test_what_is_no_repository_is_told_apart(repository: Path, monkeypatch: pytest.MonkeyPatch, path: str, hint: str):
    """A model or a version given for a repository leads to the repository that it lies in."""
    monkeypatch.chdir(repository.parent)
    assert meant_repository(Path(path)).endswith(hint)
    assert bool(meant_repository(Path(path))) == bool(hint)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("models", "--out models/NAME?"),
        ("models/pets/1", "--out models/pets?"),
        ("models/pets/9", "--out models/pets?"),
    ],
)
def test_nothing_is_published_into_a_version_or_beside_models(
    repository: Path, monkeypatch: pytest.MonkeyPatch, path: str, hint: str
):
    """What would end up where no server finds it is refused before anything is written."""
    monkeypatch.chdir(repository.parent)
    with pytest.raises(BundleError, match="did you mean") as caught:
        name_to_publish(Path(path))
    assert hint in caught.value.message


def test_versions_are_read_and_published_through_links(model_folder: Path, bundle_folder: Path, tmp_path: Path):
    """Through a link a bundle has the link's name; the next version comes to lie where the link leads."""
    (tmp_path / "pets").symlink_to(model_folder)
    bundle = read_bundle(tmp_path / "pets")
    assert (bundle.name, bundle.version) == ("pets", 1)
    (model_folder / "5").symlink_to(bundle_folder)
    assert read_bundle(tmp_path / "pets").version == 5
    contents = {name: (bundle_folder / name).read_bytes() for name in bundle.manifest.files}
    manifest = Manifest.from_json((bundle_folder / "manifest.json").read_bytes())
    assert publish(tmp_path / "pets", manifest, contents) == tmp_path / "pets" / "6"
    assert read_bundle(model_folder).version == 6
    (bundle_folder / "model.onnx").rename(tmp_path / "model.onnx")
    (bundle_folder / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="is a link"):  # folders may be links, files never
        read_bundle(tmp_path / "pets", 5)
