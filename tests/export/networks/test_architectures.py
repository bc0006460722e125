"""The networks on offer: every convolution has its stage, and the descriptor comes before any dropout."""

import pytest
import torch
from torch import nn

from penult.export.errors import SettingsError
from penult.export.networks.architectures import Architecture, get, names


@pytest.fixture(scope="module", params=names())
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """Each architecture there is."""
    return get(request.param)


@pytest.fixture(scope="module")
def body(architecture: Architecture) -> nn.Module:
    """Its network up to the descriptor, without values: drawing those of vgg16 takes a second."""
    with torch.device("meta"):
        return architecture.body()


def _names_below(body: nn.Module, paths: tuple[str, ...]) -> list[str]:
    return [f"{path}.{name}" for path in paths for name, _ in body.get_submodule(path).named_parameters()]


def test_the_promised_architectures_are_there():
    """What the documentation names can be chosen, and our own tiny network too."""
    assert set(names()) >= {
        "resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "squeezenet1_1",
        "efficientnet_b0", "alexnet", "vgg16", "tiny5",
    }  # fmt: skip


def test_an_unknown_architecture_is_refused_with_those_there_are():
    """A misspelt name is answered with the list."""
    with pytest.raises(SettingsError) as caught:
        get("resnet81")
    assert "resnet18" in caught.value.message
    assert "\n" not in caught.value.message


def test_every_parameter_belongs_to_exactly_one_stage(architecture: Architecture, body: nn.Module):
    """Five conv stages and the dense layers part all parameters of the body among them, none twice, none left over."""
    assert len(architecture.stages) == 5
    found = [name for paths in (*architecture.stages, architecture.dense) for name in _names_below(body, paths)]
    assert sorted(found) == sorted(name for name, _ in body.named_parameters())
    assert sum(parameter.numel() for parameter in body.parameters()) == architecture.parameters


def test_every_convolution_is_in_a_conv_stage(architecture: Architecture, body: nn.Module):
    """Convolutions and their batch norms are in the five stages, every stage has some, and they follow the data."""
    stages = [_names_below(body, paths) for paths in architecture.stages]
    convolutions = [f"{name}.weight" for name, module in body.named_modules() if isinstance(module, nn.Conv2d)]
    assert [sum(name in stage for stage in stages) for name in convolutions] == [1] * len(convolutions)
    order = [next(n for n, stage in enumerate(stages) if name in stage) for name in convolutions]
    assert order == sorted(order)
    assert set(order) == set(range(5))


def test_stages_run_in_order(architecture: Architecture, body: nn.Module):
    """The network really computes stage after stage: what is frozen is the beginning."""
    ran: list[int] = []
    for number, paths in enumerate(architecture.stages):
        for path in paths:
            body.get_submodule(path).register_forward_hook(lambda *_, number=number: ran.append(number))
    size = 64 if architecture.preprocess.crop > 64 else architecture.preprocess.crop
    with torch.no_grad():
        body.eval()(torch.zeros(1, 3, size, size, device="meta"))
    assert ran == sorted(ran)
    assert set(ran) == set(range(5))


def test_the_descriptor_is_what_the_last_layer_gives(architecture: Architecture, body: nn.Module):
    """The body maps any batch to flat descriptors, and no dropout is the last thing that touches them."""
    ran: list[nn.Module] = []
    for module in body.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    size = 64 if architecture.preprocess.crop > 64 else architecture.preprocess.crop
    with torch.no_grad():
        descriptors = body.eval()(torch.zeros(3, 3, size, size, device="meta")).flatten(1)
    assert descriptors.shape[0] == 3
    assert descriptors.shape[1] in (128, 512, 576, 768, 1024, 1280, 2048, 4096)
    assert not isinstance(ran[-1], nn.Dropout)
