"""Any layer leaves the network as the descriptor, and whole channels are dropped before hidden dense layers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from penult.export.config.known_networks import check_layers, layers_of
from penult.export.config.train import DESCRIPTORS, FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError
from penult.export.networks.architectures import get
from penult.export.networks.layers import layer_of, taking
from penult.export.networks.network import BatchDropout, PenultNet, Rows, build, freeze_stages, make_views

Settings = Callable[..., TrainSettings]


def _layers(net: PenultNet, name: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    network = get(name)
    layers = [layer for layer in (layer_of(network, each) for each in layers_of(network)) if layer]
    with torch.no_grad():
        read, taken = net.eval().describe_layers(pixels, layers)
    return taken | {"penultimate": read}


def _pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_stage_is_the_mean_of_its_output(tiny_net: PenultNet):
    """Every stage is averaged over places; the last is the penultimate layer of a network without dense layers."""
    pixels = _pixels(32)
    taken = _layers(tiny_net, "tiny5", pixels)
    with torch.no_grad():
        for number in range(1, 6):
            torch.testing.assert_close(
                taken[f"stage{number}"], tiny_net.body.stages[:number](pixels).mean((2, 3)), msg=f"stage{number}"
            )
    torch.testing.assert_close(taken["stage5"], taken["penultimate"])


def test_a_stage_is_taken_after_its_activation(settings: Settings):
    """ResNet's first stage ends in a batch norm that an activation changes in place: what comes after it is taken."""
    net = build(get("resnet18"), settings(arch="resnet18"), 2)
    body, pixels = net.eval().body, _pixels(64)
    with torch.no_grad():
        expected = body.maxpool(body.relu(body.bn1(body.conv1(pixels)))).mean((2, 3))
    torch.testing.assert_close(_layers(net, "resnet18", pixels)["stage1"], expected)


def test_dense1_is_the_first_hidden_dense_layer(settings: Settings):
    """fc6 of AlexNet, after its activation, which works in place; VGG's is the module before the first dropout."""
    net = build(get("alexnet"), settings(arch="alexnet"), 2)
    body, pixels = net.eval().body, _pixels(224)[:1]
    with torch.no_grad():
        expected = body.classifier[:3](body.avgpool(body.features(pixels)).flatten(1))
    taken = _layers(net, "alexnet", pixels)
    assert torch.equal(taken["dense1"], expected)
    assert (expected >= 0).all()
    assert taken["stage5"].shape == (1, 256)
    with torch.device("meta"):
        vgg = get("vgg16").body()
        with taking(vgg, [layer_of(get("vgg16"), each) for each in ("dense1", "stage5")]) as shapes:
            vgg(torch.zeros(1, 3, 224, 224))
    assert {name: value.shape for name, value in shapes.items()} == {"dense1": (1, 4096), "stage5": (1, 512)}
    assert layer_of(get("vgg16"), "dense1").path == "classifier.1"
    assert isinstance(vgg.classifier[1], nn.ReLU)


@pytest.mark.parametrize("descriptor", DESCRIPTORS[:-1])
def test_the_head_keeps_its_own_input(settings: Settings, descriptor: str):
    """Whatever leaves the network, the logits are those of the penultimate layer; a mean over views is of that layer."""
    plain, net = (build(get("tiny5"), settings(**more), 3).eval() for more in ({}, {"descriptor": descriptor}))
    pixels = _pixels(32)
    with torch.no_grad():
        (logits, _), (same, served) = plain(pixels), net(pixels)
        assert torch.equal(logits, same)
        torch.testing.assert_close(served, _layers(plain, "tiny5", pixels)[descriptor])
        assert served.shape == (2, net.served_length)
        net.views = 4
        seen = _layers(plain, "tiny5", make_views(pixels, 4))[descriptor]
        torch.testing.assert_close(net(pixels)[1], seen.view(4, 2, -1).mean(0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "resnet18", "descriptor": "dense1"}, "before the penultimate one of resnet18"),
        ({"arch": "mobilenet_v3_small", "descriptor": "dense1"}, "before the penultimate one of mobilenet_v3_small"),
        ({"arch": "mobilenet_v2", "dropout_channels": 0.2}, "--dropout drops whole channels: use it"),
    ],
)
def test_networks_without_dense_layers_refuse_what_needs_them(settings: Settings, changes: dict, said: str):
    """One line that names the networks which have them."""
    with pytest.raises(SettingsError, match=said) as caught:
        check_layers(settings(**changes))
    assert "alexnet and vgg16" in caught.value.message
    assert "\n" not in caught.value.message
    check_layers(settings(arch="vgg16", descriptor="dense1", dropout_channels=0.2))


def test_whole_channels_are_dropped_alike_in_every_process():
    """A channel is dropped or scaled as a whole, by photo; two processes with half the batch each draw the same."""
    rows, maps = Rows(), torch.ones(6, 50, 3, 3)
    dropout = BatchDropout(0.4, rows, whole_channels=True).train()
    torch.manual_seed(0)
    whole = dropout(maps)
    found = whole.flatten(2)
    assert (found == found[:, :, :1]).all()
    torch.testing.assert_close(found.unique(), torch.tensor([0, 1 / 0.6]))
    assert 0.2 < (found == 0).float().mean() < 0.6
    assert not torch.equal(whole[0], whole[1])
    parts = []
    for first, last in ((0, 2), (2, 6)):
        rows.first, rows.total = first, 6
        torch.manual_seed(0)
        parts.append(dropout(maps[first:last]))
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(dropout.eval()(maps), maps)


def test_channels_are_dropped_before_the_dense_layers(settings: Settings):
    """Names of weights and served values stay; the dropout acts while dense layers learn above frozen convolutions."""
    plain, net = (
        build(get("alexnet"), settings(arch="alexnet", dropout=0.0, dropout_channels=share), 2) for share in (0.0, 0.5)
    )
    assert set(plain.state_dict()) == set(net.state_dict())
    pixels = _pixels(224)
    with torch.no_grad():
        assert torch.equal(plain.eval()(pixels)[0], net.eval()(pixels)[0])
        freeze_stages(net, get("alexnet"), 5)
        assert not torch.equal(net.train()(pixels)[0], plain.train()(pixels)[0])
        freeze_stages(net, get("alexnet"), FREEZE_ALL)
        assert torch.equal(net.train()(pixels)[0], plain.train()(pixels)[0])
