"""Options of `penult train` that have no effect in combination with others, or with the number of classes.

An option whose promised result would not appear is rejected. An option that is merely unused is noted, because scripts
give the same options to runs that freeze more or fewer stages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penult.export.errors import SettingsError

if TYPE_CHECKING:
    from penult.export.config.refit import RefitSettings
    from penult.export.config.train import TrainSettings

# With so many stages frozen, no two conv stages learn; with one more, none does.
_ONE_LEARNS, _NONE_LEARNS = 4, 5


@dataclass(frozen=True)
class Idle:
    """Options without effect if `beside` holds. `why` follows "no effect" in the message."""

    options: tuple[str, ...]
    beside: Callable[[Any], bool]
    why: str


def _freezes_all(settings: "TrainSettings") -> bool:
    """Return True if only the head is trained; a sweep has other trials too."""
    return settings.freezes_all and settings.sweep == "no"


def _only_head_learns(settings: "TrainSettings") -> bool:
    """Return True if all conv stages are frozen and the network has no hidden dense layers."""
    from penult.export.config.known_networks import find  # which imports the settings

    if settings.freeze != _NONE_LEARNS:
        return False
    network = find(settings.arch)
    return network is not None and not network.dense


def _asks_for_the_mean(settings: "TrainSettings") -> bool:
    """Return True if stage 5 is asked for, and the penultimate layer is the mean of stage 5."""
    from penult.export.config.known_networks import find

    network = find(settings.arch)
    return settings.descriptor == "stage5" and network is not None and network.mean_is_last


def _always(settings: object) -> bool:
    return True


def _sweeps(*kinds: str) -> Callable[["TrainSettings"], bool]:
    return lambda settings: settings.sweep in kinds


def _any_sweep(settings: "TrainSettings") -> bool:
    return settings.sweep != "no"


_REFUSED = (
    Idle(("repeats",), _sweeps("no"), "without --sweep, whose seeds it counts: add --sweep freeze, labels or layers"),
    Idle(("int8", "whiten"), _any_sweep, "with --sweep, which publishes nothing"),
    Idle(("save_weights",), _any_sweep, "with --sweep, which keeps no network"),
    Idle(("tensorboard",), _any_sweep, "with --sweep, which writes no event files"),
    Idle(("descriptor",), _sweeps("layers"), "with --sweep layers, which tries every layer"),
    Idle(("descriptor",), _any_sweep, "with --sweep, whose SVMs use the penultimate layer"),
    Idle(("dropout_channels",), _freezes_all, "with --freeze all, which trains no layer that reads channels"),
    Idle(("max_loss",), lambda s: not s.int8, "without --int8, whose loss it limits: add --int8"),
    Idle(("max_error",), _any_sweep, "with --sweep, which publishes nothing"),
    Idle(("per_class",), lambda s: s.max_error is None, "without --max-error: add --max-error"),
    Idle(
        ("lr_factor", "lr_patience", "stop_patience"), lambda s: s.schedule == "onecycle",
        "with --schedule onecycle, whose rates and epochs are fixed; --schedule plateau uses them",
    ),
)  # fmt: skip
_NOTED = (
    Idle(
        ("epochs", "lr_backbone", "lr_stage_decay", "augment", "train_crop", "schedule"), _freezes_all,
        "with --freeze all, which trains the head only, on center crops; --head-epochs limits it",
    ),
    Idle(
        ("head_epochs",), lambda s: s.starts_fresh and s.sweep == "no",
        "with --weights none or --reinit, which train the head together with the layers that start at random",
    ),
    Idle(
        ("lr_backbone", "lr_stage_decay"), lambda s: s.starts_fresh and s.sweep == "no",
        "with --weights none or --reinit, which train all layers at the rate of --lr-head",
    ),
    Idle(
        ("lr_stage_decay",),
        lambda s: s.freeze >= _ONE_LEARNS and not (s.freezes_all or s.starts_fresh) and s.sweep == "no",
        "with --freeze 4 or 5, which train at most one conv stage",
    ),
    Idle(
        ("lr_backbone", "reinit"), lambda s: _only_head_learns(s) and s.sweep == "no",
        "with --freeze 5 and a network without hidden dense layers, which train the head only",
    ),
    Idle(("reinit",), lambda s: s.weights == "none", "with --weights none, which starts all layers at random"),
    Idle(("freeze", "reinit"), _sweeps("freeze"), "with --sweep freeze, which tries every depth and --reinit"),
    Idle(("report_photos",), _any_sweep, "with --sweep, which writes no report"),
    Idle(
        ("descriptor",), _asks_for_the_mean,
        "with a network whose penultimate layer is the mean of stage 5; the descriptor is the same",
    ),
    Idle(("resume",), lambda s: s.dry_run, "with --dry-run, which trains nothing"),
)  # fmt: skip

# One class teaches a network nothing, so all of it stays as it is.
_REFUSED_WITH_ONE_CLASS = (
    Idle(("reinit",), _always, "with one class, which cannot train layers that start at random"),
    Idle(("sweep",), _always, "with one class, because nothing is trained that a sweep could compare"),
    Idle(("int8", "max_loss"), _always, "with one class, because there is no accuracy that int8 could lose"),
    Idle(("max_error", "per_class"), _always, "with one class, because --false-alarms sets its threshold"),
    Idle(("whiten",), _always, "with one class, because whitening equalises the directions that novelty compares"),
    Idle(("tensorboard",), _always, "with one class, because nothing is trained"),
)
_NOTED_WITH_ONE_CLASS = (
    Idle(
        (
            "freeze", "augment", "train_crop", "schedule", "lr", "epochs", "head_epochs", "lr_head", "lr_backbone",
            "lr_stage_decay", "lr_factor", "lr_patience", "stop_patience", "weight_decay", "dropout",
            "dropout_channels", "class_weights", "svm", "kernel", "precision",
        ), _always, "with one class, which trains no layer",
    ),
)  # fmt: skip
_REFUSED_WITH_CLASSES = (
    Idle(("novelty", "false_alarms", "outliers"), _always, "with several classes, because they are for one"),
)


def refuse_for(settings: "TrainSettings | RefitSettings", classes: int) -> None:
    """Raise SettingsError, with one line, for options whose result would not appear with so many classes."""
    _refuse(settings, _REFUSED_WITH_ONE_CLASS if classes == 1 else _REFUSED_WITH_CLASSES)
    if classes == 1 and getattr(settings, "weights", "") == "none":
        raise SettingsError(
            "WEIGHTS", "--weights none starts at random, and one class cannot train a network: give imagenet or FILE"
        )


def notes_for_one_class(settings: "TrainSettings | RefitSettings") -> tuple[str, ...]:
    """Return a line for the given options that are unused with one class."""
    return tuple(f"{names} no effect {why}" for names, why in _found(settings, _NOTED_WITH_ONE_CLASS))


def refuse(settings: "TrainSettings") -> None:
    """Raise SettingsError, with one line, for all options whose promised result would not appear."""
    _refuse(settings, _REFUSED)


def _refuse(settings: "TrainSettings | RefitSettings", table: tuple[Idle, ...]) -> None:
    if found := _found(settings, table):
        out = "omit it" if len(found) == 1 and " and " not in found[0][0] else "omit them"
        said = "; ".join(f"{names} no effect {why}" for names, why in found)
        raise SettingsError("NO_EFFECT", f"{said}; or {out}" if ": add" in said else f"{said}; {out}")


def notes(settings: "TrainSettings") -> tuple[str, ...]:
    """Return a line for each group of given options that are unused in this run."""
    return tuple(f"{names} no effect {why}" for names, why in _found(settings, _NOTED))


def _found(settings: "TrainSettings | RefitSettings", table: tuple[Idle, ...]) -> list[tuple[str, str]]:
    """Return the given options without effect, as "--a and --b have", with the reason; each option once."""
    found, seen = [], set()
    for idle in table:
        given = [
            name
            for name in idle.options
            if name not in seen and hasattr(settings, name) and getattr(settings, name) != getattr(type(settings), name)
        ]
        if given and idle.beside(settings):
            seen |= {*given}
            found.append((f"{_listed(given)} {'has' if len(given) == 1 else 'have'}", idle.why))
    return found


def _listed(names: list[str]) -> str:
    flags = ["--no-report-photos" if name == "report_photos" else f"--{name.replace('_', '-')}" for name in names]
    return " and ".join([", ".join(flags[:-1]), flags[-1]] if len(flags) > 1 else flags)
