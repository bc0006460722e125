"""`penult networks`: what --arch takes, as a table and as JSON."""

import json

import pytest

from penult import cli
from penult.export.config.known_networks import NETWORKS


def test_the_known_networks_are_listed(capsys: pytest.CaptureFixture[str]):
    """Each of the 13 has a line with its size, and the JSON has the facts that a script needs."""
    assert cli.main(["networks"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == sorted(NETWORKS)
    assert cli.main(["networks", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)["networks"]}
    assert listed["resnet18"]["stages"] == [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    assert listed["resnet18"]["descriptor_length"] == 512
    assert {name for name, each in listed.items() if not each["class_map_exact"]} == {
        "alexnet", "convnext_tiny", "mobilenet_v3_large", "mobilenet_v3_small", "vgg16",
    }  # fmt: skip


def test_networks_of_timm_are_listed_with_those_refused(capsys: pytest.CaptureFixture[str]):
    """A pattern finds the networks that can be cut, and says why another cannot."""
    assert cli.main(["networks", "--timm", "test_[rv][ei]*t", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in answer["networks"]] == ["timm/test_resnet"]
    refused = {each["name"]: each["reason"] for each in answer["refused"]}
    assert "sequence of tokens" in refused["timm/test_vit"]


def test_a_pattern_without_networks_is_an_error(capsys: pytest.CaptureFixture[str]):
    """It fails in one line."""
    assert cli.main(["networks", "--timm", "no_such_*"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("penult: --timm no_such_*: timm ")
