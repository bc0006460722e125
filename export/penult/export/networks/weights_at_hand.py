"""Find the networks whose weights are on this machine: files that are named, and what torch and timm have downloaded.

Nothing is downloaded.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torchvision

from penult.console import say
from penult.export.config import known_networks
from penult.export.config.known_networks import TIMM
from penult.export.errors import SettingsError
from penult.export.networks import architectures, weights_file
from penult.export.networks.weights import looks_like, read
from penult.export.networks.weights_names import candidates, mismatches

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
# A folder of the Hugging Face hub's cache that holds weights of timm.
_OF_TIMM = "models--timm--"


@dataclass(frozen=True)
class AtHand:
    """A network and the file of its weights, as --arch and --weights take them.

    Attributes:
        imagenet: The accuracy on ImageNet that torchvision publishes for this architecture, 0 if unknown.
        name: What it is called in tables; with the file if several files fit the same network.
    """

    arch: str
    weights: str
    imagenet: float = 0.0
    name: str = ""


def find(weights: str, arch: str = "") -> tuple[AtHand, ...]:
    """Return the networks at hand, in order of their names.

    Args:
        weights: Files and folders, separated by commas; "" looks into the caches of torch and timm.
        arch: The only network that is wanted; "" is any.

    Raises:
        SettingsError: A named file fits no network, or not the one that is wanted.
    """
    found = _named(weights, arch) if weights else _cached(arch)
    different = sorted({(each.arch, each.weights): each for each in found}.values(), key=lambda e: (e.arch, e.weights))
    times = Counter(each.arch for each in different)
    return tuple(
        replace(each, name=each.arch if times[each.arch] == 1 else f"{each.arch} ({Path(each.weights).name})")
        for each in different
    )


def _named(weights: str, arch: str) -> list[AtHand]:
    found, problems = [], []
    for path in _files(weights):
        try:
            if name := _network_of(path, arch):
                found.append(AtHand(name, str(path), _imagenet(name)))
            else:
                problems.append(f"--weights {path} fits no network that penult knows; give --arch NAME to see why")
        except SettingsError as error:
            problems.append(error.message)
    if not found:
        raise SettingsError("WEIGHTS", problems[0] if problems else f"--weights {weights} has no file of weights")
    for problem in problems:
        say(f"note: {problem}")
    return found


def _files(weights: str) -> Iterator[Path]:
    """Yield the files of --weights; a folder gives those of weights inside it."""
    parts = [weights] if Path(weights).exists() else weights.split(",")
    for part in parts:
        path = Path(part)
        yield from sorted(each for each in path.iterdir() if each.suffix in _ENDINGS) if path.is_dir() else [path]


def _network_of(path: Path, arch: str) -> str:
    """Return the network that a file's tensors fit exactly, `arch` if given; "" if there is none."""
    any_network = known_networks.get(arch or "tiny5")
    weights_file.check(str(path), any_network)
    content = read(str(path))
    if arch:
        with torch.device("meta"):
            own = architectures.get(arch).body().state_dict()
        readings = (each.state for each in candidates(content))
        fits = any(next(mismatches(own, state, any_network.classifier), None) is None for state in readings)
        return arch if fits else ""
    for reading in candidates(content):
        name, share = looks_like(reading.state)
        if share == 1:
            return name
    return ""


def _cached(arch: str) -> Iterator[AtHand]:
    """Yield what torchvision and timm have downloaded before."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in [arch] if arch else known_networks.names():
        if name in known_networks.NETWORKS and known_networks.get(name).downloads:
            choices = torchvision.models.get_model_weights(name)
            files = [folder / Path(urlsplit(each.url).path).name for each in choices]
            if there := next((file for file in files if file.is_file()), None):
                yield AtHand(name, str(there), _imagenet(name))
    if importlib.util.find_spec("timm") and importlib.util.find_spec("huggingface_hub"):
        for name, file in sorted(_of_hub()):
            if arch in ("", name) and _can_be_cut(name):
                yield AtHand(name, str(file))


def _of_hub() -> Iterator[tuple[str, Path]]:
    """Yield the networks of timm, with tags, in the cache of the Hugging Face hub."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob(f"{_OF_TIMM}*")):
        files = sorted(folder.glob("snapshots/*/model.safetensors"), key=lambda file: file.stat().st_mtime)
        if files:
            yield TIMM + folder.name.removeprefix(_OF_TIMM), files[-1]


def _can_be_cut(name: str) -> bool:
    try:
        known_networks.get(name)
    except SettingsError:
        return False
    return True


def _imagenet(arch: str) -> float:
    """Return the accuracy that torchvision publishes for its first weights of an architecture; 0 if there is none.

    Accuracy on ImageNet and after fine-tuning on other photos correlate by 0.96 (Kornblith et al. 2019).
    """
    if arch not in known_networks.NETWORKS or not known_networks.get(arch).downloads:
        return 0.0
    first = next(iter(torchvision.models.get_model_weights(arch)))
    return float(first.meta["_metrics"]["ImageNet-1K"]["acc@1"]) / 100
