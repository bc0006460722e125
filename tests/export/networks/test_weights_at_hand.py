"""The networks whose weights are at hand: named files, folders, and what was downloaded before. Nothing is downloaded."""

from pathlib import Path

import pytest
import torch

from penult.export.errors import SettingsError
from penult.export.networks.architectures import get
from penult.export.networks.weights_at_hand import find


@pytest.fixture
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch; the folder of its weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def _save(arch: str, path: Path) -> Path:
    torch.save(get(arch).body().state_dict(), path)
    return path


def test_files_are_recognised_by_their_tensors(tmp_path: Path):
    """A folder, or files separated by commas; other endings in the folder are left alone."""
    tiny, squeeze = _save("tiny5", tmp_path / "a.pt"), _save("squeezenet1_1", tmp_path / "b.pth")
    (tmp_path / "notes.txt").write_text("notes")
    for weights in (str(tmp_path), f"{tiny},{squeeze}"):
        found = [(each.name, each.weights) for each in find(weights)]
        assert found == [("squeezenet1_1", str(squeeze)), ("tiny5", str(tiny))]
    assert [each.arch for each in find(str(tmp_path), "tiny5")] == ["tiny5"]


def test_files_of_one_network_are_told_apart(tmp_path: Path):
    """Their names in tables have the file."""
    _save("tiny5", tmp_path / "a.pt")
    _save("tiny5", tmp_path / "b.pt")
    assert [each.name for each in find(str(tmp_path))] == ["tiny5 (a.pt)", "tiny5 (b.pt)"]


@pytest.mark.parametrize(
    ("content", "said"), [("", "does not exist"), ("{}", "has no named tensors"), ("other", "fits no network")]
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, said: str):
    """In one line, if it is the only one."""
    path = tmp_path / "w.pt"
    if content:
        torch.save({} if content == "{}" else {"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(SettingsError, match=said):
        find(str(path))


def test_downloads_of_before_are_found(no_caches: Path):
    """A file of torchvision under its own name, with the accuracy that it publishes; nothing else."""
    assert find("") == ()
    path = _save("squeezenet1_1", no_caches / "squeezenet1_1-b8a52dc0.pth")
    (found,) = find("")
    assert (found.arch, found.weights) == ("squeezenet1_1", str(path))
    assert found.imagenet == pytest.approx(0.58178)
    assert find("", "resnet18") == ()
