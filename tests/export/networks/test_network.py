"""Freezing and weights: what is frozen stays bit-equal, what is loaded is what the file holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError
from penult.export.networks.architectures import Architecture, get, names
from penult.export.networks.network import BatchDropout, PenultNet, build, freeze_stages, parameter_groups

Settings = Callable[..., TrainSettings]
_DEEP = [name for name in names() if name not in ("tiny5", "resnet18")]
_CASES = [(name, count) for name in ("tiny5", "resnet18") for count in range(FREEZE_ALL + 1)]
_CASES += [(name, count) for name in _DEEP for count in (3, FREEZE_ALL)]


def _one_step(net: PenultNet, architecture: Architecture, settings: TrainSettings) -> None:
    """Learn from two random pictures once, as the whole phase does; rates are high, so that what can move does."""
    optimizer = torch.optim.AdamW(parameter_groups(net, architecture, settings), weight_decay=0.1, fused=True)
    size = min(64, architecture.preprocess.crop)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(net.train()(pixels)[0], torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()


def _frozen_names(net: PenultNet, architecture: Architecture, count: int) -> set[str]:
    if count == FREEZE_ALL:
        return {f"body.{name}" for name in net.body.state_dict()}
    paths = tuple(f"body.{path}." for stage in architecture.stages[:count] for path in stage)
    return {name for name in net.state_dict() if name.startswith(paths)}


@pytest.mark.server
@pytest.mark.parametrize(("name", "count"), _CASES)
def test_frozen_stays_bit_equal_and_the_rest_moves(settings: Settings, name: str, count: int):
    """After one optimizer step in train mode, frozen parameters and buffers are untouched; all others have moved."""
    architecture = get(name)
    net = build(architecture, settings(arch=name), classes=2)
    with torch.no_grad():  # biases and statistics away from their zeros, so that weight decay alone moves them
        for value in net.state_dict().values():
            value.add_(0.01) if value.is_floating_point() else value.add_(1)
    freeze_stages(net, architecture, count)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    _one_step(net, architecture, settings(arch=name, lr_head=0.05))
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    frozen = _frozen_names(net, architecture, count)
    assert bool(frozen) == (count > 0)
    assert moved == set(before) - frozen


def test_frozen_batch_norm_normalises_as_in_serving(settings: Settings):
    """In train mode a frozen body computes what it computes in eval mode, and the same twice in a row."""
    architecture = get("resnet18")
    net = build(architecture, settings(arch="resnet18", dropout=0.9), classes=2)
    freeze_stages(net, architecture, FREEZE_ALL)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        served = net.eval()(pixels)[1]
        net.train()
        (first_logits, first), (second_logits, second) = net(pixels), net(pixels)
    assert torch.equal(first, served)
    assert torch.equal(first, second)
    assert not torch.equal(first_logits, second_logits)


def test_unfreezing_lets_layers_learn_again(settings: Settings):
    """Freezing fewer stages than before frees the others, as the change from the first to the second phase needs."""
    architecture = get("tiny5")
    net = build(architecture, settings(), classes=2)
    freeze_stages(net, architecture, FREEZE_ALL)
    freeze_stages(net, architecture, 2)
    net.train()
    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in net.named_parameters()} - _frozen_names(net, architecture, 2)
    assert [stage.training for stage in net.body.stages] == [False, False, True, True, True]


@pytest.mark.parametrize("name", ["mobilenet_v2", "alexnet", "tiny5"])
def test_the_descriptor_is_taken_before_dropout(settings: Settings, name: str):
    """The head begins with the dropout, and what it is given is the descriptor that forward() returns."""
    net = build(get(name), settings(arch=name, dropout=0.5), classes=2)
    given: list[torch.Tensor] = []
    net.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        _, descriptor = net.train()(torch.randn(2, 3, *[get(name).preprocess.crop] * 2))
    assert isinstance(net.head[0], BatchDropout)
    assert torch.equal(given[0], descriptor)
    assert descriptor.shape == (2, net.descriptor_length)


@pytest.mark.parametrize(
    ("name", "given", "expected"), [("alexnet", None, 0.5), ("tiny5", None, 0.2), ("alexnet", 0.1, 0.1)]
)
def test_dropout_is_the_networks_own_or_the_one_given(settings: Settings, name: str, given: float, expected: float):
    """Without --dropout each network has its own rate; a rate given holds for all its dropouts."""
    net = build(get(name), settings(arch=name, dropout=given), classes=2)
    assert {
        module.share for module in net.modules() if isinstance(module, BatchDropout) and not module.whole_photos
    } == {expected}


def test_rates_fall_towards_the_input(settings: Settings, tiny_weights: Path):
    """The head learns fastest, each stage further from it slower, and frozen ones are no group at all."""
    chosen = settings(weights=str(tiny_weights), freeze=2, lr_head=1e-3, lr_backbone=1e-4, lr_stage_decay=0.5)
    net = build(get("tiny5"), chosen, classes=2)
    freeze_stages(net, get("tiny5"), chosen.freeze)
    groups = parameter_groups(net, get("tiny5"), chosen)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("head", 1e-3), ("stage 5", 1e-4), ("stage 4", 5e-5), ("stage 3", 2.5e-5),
    ]  # fmt: skip
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(parameters) == len({id(p) for p in parameters})


def test_random_layers_learn_at_the_heads_rate(settings: Settings, tiny_weights: Path):
    """Where the rest starts at random, nothing is there to be kept, so all of it learns as fast as the head."""
    for chosen in (settings(), settings(weights=str(tiny_weights), reinit=True, freeze=2)):
        net = build(get("tiny5"), chosen, classes=2)
        assert {group["lr"] for group in parameter_groups(net, get("tiny5"), chosen)} == {chosen.lr_head}


def _body(settings: Settings, **changes: Any) -> dict[str, torch.Tensor]:
    return build(get("tiny5"), settings(**changes), classes=3).body.state_dict()


def test_continuing_loads_everything(settings: Settings, tiny_weights: Path):
    """By default every layer of the body goes on from the file, buffers too."""
    stored, found = torch.load(tiny_weights), _body(settings, weights=str(tiny_weights), freeze=2)
    assert all(torch.equal(found[key], stored[key]) for key in stored)
    assert set(found) == set(stored)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_reinit_keeps_the_frozen_stages_and_draws_the_rest(settings: Settings, tiny_weights: Path, count: int):
    """With --reinit the frozen stages are the file's, all others those of a fresh network."""
    stored, fresh = torch.load(tiny_weights), _body(settings)
    found = _body(settings, weights=str(tiny_weights), reinit=True, freeze=count)
    kept = tuple(f"stages.{stage}." for stage in range(count))
    for key, value in found.items():
        assert torch.equal(value, (stored if key.startswith(kept) else fresh)[key]), key


def test_the_seed_decides_the_random_start(settings: Settings):
    """The same seed draws the same weights, another one others."""
    first, again, other = (build(get("tiny5"), settings(seed=seed), 3).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.1.weight"], other["head.1.weight"])


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_real_weights_load(settings: Settings, shared_data: Path, name: str):
    """State dicts with torchvision's names load into the body, and their own classifier is left out."""
    path = shared_data / f"{name}.pth"
    body, stored = build(get(name), settings(arch=name, weights=str(path)), 6).body.state_dict(), torch.load(path)
    assert len(body) >= 50
    assert all(torch.equal(value, stored[key]) for key, value in body.items())


@pytest.mark.parametrize("wrap", ["module.", "body."])
def test_wrapped_state_dicts_load(settings: Settings, tiny_weights: Path, tmp_path: Path, wrap: str):
    """Prefixes of DataParallel or of our own network, and a surrounding checkpoint, are taken off."""
    stored = torch.load(tiny_weights)
    torch.save({"state_dict": {wrap + key: value for key, value in stored.items()}, "epoch": 3}, tmp_path / "w.pt")
    found = _body(settings, weights=str(tmp_path / "w.pt"))
    assert all(torch.equal(found[key], stored[key]) for key in stored)


def test_old_weights_without_batch_counters_load(settings: Settings, tiny_weights: Path, tmp_path: Path):
    """Files from before PyTorch counted batches are fine."""
    old = {key: value for key, value in torch.load(tiny_weights).items() if "num_batches" not in key}
    torch.save(old, tmp_path / "w.pt")
    assert torch.equal(_body(settings, weights=str(tmp_path / "w.pt"))["stages.0.0.weight"], old["stages.0.0.weight"])


def _refused(settings: Settings, weights: str, arch: str = "tiny5") -> str:
    with pytest.raises(SettingsError) as caught:
        build(get(arch), settings(arch=arch, weights=weights), classes=3)
    assert caught.value.reason == "WEIGHTS"
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("stages.2.0.weight"), "stages.2.0.weight is missing"),
        (lambda state: state.update({"stages.2.0.weight": torch.zeros(3)}), "shape"),
        (lambda state: state.update({"stages.9.0.weight": torch.zeros(3)}), "the network has no stages.9.0.weight"),
        (lambda state: state.update({"stages.2.0.weight": 5}), "stages.2.0.weight is not a tensor"),
        (lambda state: state.clear(), "has no named tensors"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    settings: Settings, tiny_weights: Path, tmp_path: Path, change: Any, said: str
):
    """Missing, superfluous and wrongly shaped entries are named in one line."""
    state = torch.load(tiny_weights)
    change(state)
    torch.save(state, tmp_path / "w.pt")
    assert said in _refused(settings, str(tmp_path / "w.pt"))


def test_weights_of_another_network_are_refused(settings: Settings, tiny_weights: Path):
    """A good file for one network is no file for another."""
    assert "does not fit --arch" in _refused(settings, str(tiny_weights), arch="squeezenet1_1")


@pytest.mark.parametrize("data", [b"", b"no weights", b"PK\x03\x04" + bytes(100), b"\x80\x05]q\x00."])
def test_what_is_no_weights_file_is_refused(settings: Settings, tmp_path: Path, data: bytes):
    """Empty files, text, broken archives and other pickles are refused in one line."""
    (tmp_path / "w.pt").write_bytes(data)
    assert "w.pt" in _refused(settings, str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [[1, 2], {1: torch.zeros(1)}, torch.zeros(3), {"state_dict": 5}, None])
def test_a_file_that_holds_something_else_is_refused(settings: Settings, tmp_path: Path, content: object):
    """A file that torch can load but that holds no state dict is refused in one line."""
    torch.save(content, tmp_path / "w.pt")
    assert "w.pt" in _refused(settings, str(tmp_path / "w.pt"))


def test_weights_that_run_code_are_refused(settings: Settings, tmp_path: Path):
    """A pickle that would run code is refused, and the code does not run."""

    class Evil:
        def __reduce__(self) -> tuple:
            return (tmp_path.joinpath("canary").touch, ())

    torch.save({"stages.0.0.weight": Evil()}, tmp_path / "w.pt")
    _refused(settings, str(tmp_path / "w.pt"))
    assert not (tmp_path / "canary").exists()


def test_weights_that_are_not_there_are_refused(settings: Settings, tmp_path: Path):
    """A missing file, a folder, and weights that torchvision does not have are each refused in one line."""
    assert "does not exist" in _refused(settings, str(tmp_path / "absent.pt"))
    assert "is a folder" in _refused(settings, str(tmp_path))
    assert "tiny5" in _refused(settings, "imagenet")
