"""The options of `penult label`. Light to import: the command line shows help without loading scikit-learn."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from penult.client.types import DEFAULT_TARGET
from penult.export.config.inspect import refuse_two_networks, refuse_version_alone
from penult.export.config.photos import LearningSettings
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.settings import setting

ACTIVE, RANDOM = STRATEGIES = ("active", "random")
_MAX_CLASSES = 1000


def _classes(text: str) -> tuple[str, ...]:
    """Read class names with commas between them."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write a,b,c")
    if len(names) > _MAX_CLASSES:
        raise argparse.ArgumentTypeError(f"{len(names)} classes; {_MAX_CLASSES} are the most")
    if bad := [name for name in names if not name.isprintable()]:
        raise argparse.ArgumentTypeError(f"{bad[0]!r} is unprintable")
    return names


@dataclass(frozen=True)
class LabelSettings(LearningSettings):
    """Which photos to label, into which file, with the help of which network."""

    PREFIX: ClassVar[str] = "PENULT_LABEL_"

    folder: Path = setting(MISSING, "images to label, in folders at any depth", is_positional=True)
    labels: Path = setting(Path("labels.csv"), "label file; an existing one is continued", metavar="FILE.csv")
    classes: tuple[str, ...] = setting(
        (), "class names; the page can add more", read=_classes, metavar="a,b,c", shown="those of the file"
    )
    browser: bool = setting(True, "open the page in the browser")
    port: int = setting(0, "port of the page on 127.0.0.1", minimum=0, below=65536, shown="a free one")
    seed: int = setting(0, "seed of random choices", minimum=0, below=2**32)

    arch: str = setting(TrainSettings.arch, "network that describes images", metavar="NAME", group="network")
    weights: str = setting(TrainSettings.weights, "ImageNet weights or a state-dict file", metavar="imagenet|FILE|none")
    model: Path | None = setting(None, "take the network of this model, a folder like models/NAME", metavar="MODEL")
    version: int | None = setting(None, "version of the model", metavar="V", minimum=1, shown="the newest")

    publish: Path | None = setting(
        None, "model that the page publishes versions of", metavar="models/NAME", shown="--model", group="results"
    )
    collection: str = setting("", "collection of a server that stores labelled items", metavar="C")
    from_collection: str = setting("", "begin with the labels of stored items", metavar="C")
    target: str = setting(
        DEFAULT_TARGET, "server of the collection", metavar="HOST:PORT", shown=os.environ.get("PENULT_TARGET", "")
    )
    import_: Path | None = setting(
        None, "add the labels of another label file first", name="import", metavar="FILE", group="exchange"
    )
    export: Path | None = setting(None, "write labels and guesses for Label Studio, and exit", metavar="FILE.json")

    replay: Path | None = setting(
        None, "play labelling with the labels of this file", metavar="TRUTH.csv", group="replay"
    )
    strategy: str = setting(ACTIVE, "how photos are chosen", choices=STRATEGIES, shown="both, without --json")
    budget: int = setting(0, "labels to play", minimum=1, metavar="N", shown="all")
    out: Path | None = setting(None, "picture of the replay", metavar="FILE.svg", shown="beside the truth")

    def __post_init__(self) -> None:
        """Reject options that contradict each other."""
        super().__post_init__()
        refuse_version_alone(self.version, self.model)
        if self.collection and self.from_collection and self.collection != self.from_collection:
            raise SettingsError("RANGE", "--collection and --from-collection name different collections; give one")

    @property
    def model_to_publish(self) -> Path | None:
        """The model of which the page publishes versions."""
        return self.publish or self.model

    @classmethod
    def given(
        cls, flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> dict[str, Any]:
        """Merge what is given; reject options that would have no effect."""
        found = super().given(flags, file, environment)
        refuse_two_networks(found)
        if "replay" not in found and (idle := [f"--{name}" for name in ("strategy", "budget", "out") if name in found]):
            raise SettingsError("NO_EFFECT", f"{' and '.join(idle)} would have no effect without --replay TRUTH.csv")
        if "target" not in found and (target := environment.get("PENULT_TARGET")):
            found["target"] = target
        return found
