"""`penult train --dry-run`: show what a run would do, and estimate its memory, disk and time.

Photos are checked and the network is built as for a run. One batch is measured, with weights that are not kept.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch

from penult.bundle.naming import name_to_publish, versions
from penult.console import duration, table
from penult.export.config import no_effect
from penult.export.config.known_networks import preprocess
from penult.export.config.train import FREEZE_ALL, STRETCH, TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.split_folders import PARTS
from penult.export.data.splitting import Photo
from penult.export.errors import SettingsError
from penult.export.evaluation import svm_cost
from penult.export.jobs import dry_run_one_class, estimate
from penult.export.jobs.dry_run_sweep import TrialPlan, trial_plans
from penult.export.jobs.preflight import sweep_folder
from penult.export.jobs.sweep_view import AXES
from penult.export.jobs.train import check_svm, splits_of
from penult.export.networks import architectures
from penult.export.networks.architectures import Architecture
from penult.export.networks.network import PenultNet, build, freeze_stages, parameter_groups
from penult.export.networks.stages import stages_of
from penult.export.training.distributed import device_for

_MAX_EVEN = 4
_MANY = 20
_SHOWN_CLASSES = 40


@dataclass(frozen=True)
class StagePlan:
    """A row of the table of stages: `rate` is the learning rate, None if the stage is frozen."""

    name: str
    modules: str
    parameters: int
    rate: float | None


@dataclass(frozen=True)
class Plan:
    """The plan of a run. Bytes and seconds are estimates.

    Attributes:
        bundle: The folder of the bundle; of a sweep, the folder of its table and plot.
        photos: By split, the photos of each class, in the order of `classes`.
        head_epochs: 0 if the head has no phase of its own.
        epochs: 0 if only the head is trained.
        steps: Steps per epoch; 0 if only the head is trained.
        svm_s: The time of the SVM, at most.
        svm: How the SVM is searched.
        most_s: The time of the run, or of all trials, without early stopping and without the export.
        trials: The trials of a sweep.
    """

    architecture: str
    weights: str
    device: str
    bundle: str
    classes: tuple[str, ...]
    photos: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]
    advice: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    resize: int
    crop: int
    fit: str
    views: int
    descriptor_length: int
    head_epochs: int
    epochs: int
    steps: int
    batch_size: int
    cache_needed_bytes: int
    cache_bytes: int
    checkpoint_bytes: int
    bundle_bytes: int
    batch: estimate.Seconds
    epoch_s: float
    svm_s: float
    svm: str
    most_s: float
    sweep: str = "no"
    trials: tuple[TrialPlan, ...] = ()


def show(settings: TrainSettings, as_json: bool = False) -> None:
    """Print the plan of a run, as text or JSON; raise the PenultError that the run would raise."""
    name_to_publish(settings.out)
    preprocess(settings)
    device = device_for(settings.device)
    splits = splits_of(settings)
    if len(splits.classes) == 1:
        only = dry_run_one_class.make(settings, splits)
        print(json.dumps(asdict(only)) if as_json else "\n".join(dry_run_one_class.lines(only)))
        return
    no_effect.refuse_for(settings, len(splits.classes))
    plan = make(settings, splits, device)
    print(json.dumps(asdict(plan)) if as_json else "\n".join(lines(plan)))


def make(settings: TrainSettings, splits: Splits, device: torch.device) -> Plan:
    """Build the network, measure a batch, and return the plan; raise the SettingsError of the run."""
    architecture = architectures.get(settings.arch)
    net, problem = _build(architecture, settings, len(splits.classes))
    counts = check_svm(settings, splits, net)
    freeze_stages(net, architecture, settings.freeze)
    learns_whole = settings.freeze < FREEZE_ALL
    spec = preprocess(settings)
    checkpoint, bundle = estimate.file_bytes(net, len(splits.classes), spec)
    sweeps = settings.sweep != "no"
    needed = estimate.cache_bytes(splits, spec, learns_whole or sweeps)
    stages = stage_plans(net, architecture, settings)
    reader = PhotoReader(spec, Cache(settings.cache_mb << 20), settings.batch_size)
    batch = estimate.measure(net, architecture, settings, splits, reader, device)
    epoch_s, most_s = estimate.durations(splits, settings, batch, needed, device.type == "cpu")
    svm_s = svm_cost.here_s(settings.svm, counts)
    if settings.freezes_all:
        svm_s = svm_cost.search_here_s(settings.svm, counts, 0 if settings.whiten else settings.head_epochs)
    planned = Plan(
        architecture=settings.arch,
        weights=settings.weights,
        device=device.type,
        bundle=str(settings.out / str(max(versions(settings.out), default=0) + 1)),
        classes=splits.classes,
        photos={part: per_class(getattr(splits, part), len(splits.classes)) for part in PARTS},
        notes=no_effect.notes(settings) + problem + splits.notes,
        advice=advice(splits, settings, needed),
        stages=stages,
        resize=spec.resize,
        crop=spec.crop,
        fit=spec.fit,
        views=settings.views,
        descriptor_length=settings.whiten or net.served_length,
        head_epochs=0 if settings.starts_fresh else settings.head_epochs,
        epochs=settings.epochs if learns_whole else 0,
        steps=estimate.batches(len(splits.train), settings.batch_size) if learns_whole else 0,
        batch_size=settings.batch_size,
        cache_needed_bytes=needed,
        cache_bytes=settings.cache_mb << 20,
        checkpoint_bytes=checkpoint,
        bundle_bytes=bundle,
        batch=batch,
        epoch_s=epoch_s,
        svm_s=svm_s,
        svm=svm_cost.method(settings.svm, counts),
        most_s=most_s + svm_s,
    )
    if not sweeps:
        return planned
    trials = trial_plans(settings, splits, architecture, reader, batch, needed, device)
    total_s, folder = sum(trial.most_s for trial in trials), str(sweep_folder(settings))
    return replace(planned, sweep=settings.sweep, trials=trials, most_s=total_s, bundle=folder, bundle_bytes=0)


def _build(architecture: Architecture, settings: TrainSettings, classes: int) -> tuple[PenultNet, tuple[str, ...]]:
    """Build the network; if only the download of its weights fails, use random ones and return a note on it."""
    try:
        return build(architecture, settings, classes), ()
    except SettingsError as error:
        # A failed download has a cause; weights that torchvision does not have raise an error without one.
        if not settings.weights.startswith("imagenet") or error.__cause__ is None:
            raise
        net = build(
            architecture, replace(settings, weights="none", freeze=0, reinit=False, sweep="no", repeats=1), classes
        )
        return net, (f"a run would fail: {error.message}",)


def per_class(photos: Iterable[Photo], classes: int) -> tuple[int, ...]:
    """Return the number of photos of each class."""
    count = Counter(photo.label for photo in photos)
    return tuple(count[label] for label in range(classes))


def advice(splits: Splits, settings: TrainSettings, needed_bytes: int) -> tuple[str, ...]:
    """Return a line for each setting that may give a better result."""
    count = per_class(splits.train, len(splits.classes))
    most, least = (splits.classes[count.index(pick(count))] for pick in (max, min))
    said = []
    if max(count) > _MAX_EVEN * min(count):
        ratio = max(count) / max(min(count), 1)
        said.append(f"{most!r} has {ratio:.1f} times the photos of {least!r}: consider --class-weights balanced")
    tries_frozen = settings.sweep != "no" or settings.freeze == FREEZE_ALL
    if min(count) < _MANY and not tries_frozen and settings.weights != "none":
        said.append(
            f"{least!r} has {min(count)} training photos; below {_MANY}, a frozen network with an SVM is often better, "
            "compare with --freeze all"
        )
    if needed_bytes > settings.cache_mb << 20:
        said.append(f"--cache-mb {-(-needed_bytes >> 20)} keeps every decoded photo in memory")
    return tuple(said)


def stage_plans(net: PenultNet, architecture: Architecture, settings: TrainSettings) -> tuple[StagePlan, ...]:
    """Return stages, hidden dense layers and head of a network that is frozen as in the run, with their rates."""
    rates = {group["name"]: group["lr"] for group in parameter_groups(net, architecture, settings)}
    rows = [(stage.name, stage.modules, stage.parameters) for stage in stages_of(architecture, net.body)]
    rows.append(("head", "dropout, dense", sum(p.numel() for p in net.head.parameters())))
    return tuple(StagePlan(*row, float(str(rates[row[0]])) if row[0] in rates else None) for row in rows)


# -- as text -----------------------------------------------------------------------------------------------------------


def lines(plan: Plan) -> list[str]:
    """Return the plan as text."""
    total = sum(map(sum, plan.photos.values()))
    return [
        f"{plan.architecture} from {plan.weights} on {plan.device}, {total:,} photos of {len(plan.classes)} classes; "
        "nothing is trained or written",
        "",
        *_photo_table(plan),
        "",
        *(f"note: {line}" for line in plan.notes),
        *(f"advice: {line}" for line in plan.advice),
        *([""] if plan.notes or plan.advice else []),
        *(_trial_table(plan) if plan.trials else _stage_table(plan)),
        "",
        *_facts(plan),
    ]


def _photo_table(plan: Plan) -> list[str]:
    names = [*plan.classes[:_SHOWN_CLASSES], "all"]
    columns = [[f"{n:,}" for n in (*count[:_SHOWN_CLASSES], sum(count))] for count in plan.photos.values()]
    rows = [["class", *plan.photos], *map(list, zip(names, *columns, strict=True))]
    if (more := len(plan.classes) - _SHOWN_CLASSES) > 0:
        rows.insert(-1, [f"and {more} more classes", *[""] * len(plan.photos)])
    return table(rows, left=1)


def _stage_table(plan: Plan) -> list[str]:
    rows = [["stage", "modules", "parameters", "learning rate"]]
    for stage in plan.stages:
        rate = "frozen" if stage.rate is None else f"{stage.rate:.3g}"
        rows.append([stage.name, stage.modules, f"{stage.parameters:,}", rate])
    learning = sum(stage.parameters for stage in plan.stages if stage.rate is not None)
    rows.append(["all", "", f"{sum(stage.parameters for stage in plan.stages):,}", f"{learning:,} trained"])
    return table(rows, left=2)


def _trial_table(plan: Plan) -> list[str]:
    rows = [["mode", AXES[plan.sweep], "photos", "seeds", "time at most"]]
    for trial in plan.trials:
        rows.append([trial.mode, trial.at, f"{trial.photos:,}", str(trial.repeats), duration(trial.most_s)])
    return table(rows, left=1)


def _input(plan: Plan) -> str:
    cost = f"; serving uses {plan.views} views of it, at {plan.views} times the cost" if plan.views > 1 else ""
    if plan.fit == STRETCH and plan.resize == plan.crop:
        return f"the whole photo, stretched to {plan.crop} x {plan.crop} pixels{cost}"
    resized = "both sides are" if plan.fit == STRETCH else "shorter side is"
    return f"center crop of {plan.crop} x {plan.crop} pixels from a photo whose {resized} {plan.resize}{cost}"


def _facts(plan: Plan) -> list[str]:
    share = min(1.0, plan.cache_bytes / max(plan.cache_needed_bytes, 1))
    kept = "all are kept" if share == 1 else f"{share:.0%} is kept, the rest is decoded every time"
    facts = []
    if plan.head_epochs and not plan.trials:
        facts.append(["head", f"at most {plan.head_epochs} epochs on descriptors that are computed once"])
    if plan.epochs and not plan.trials:
        facts.append(["network", f"at most {plan.epochs} epochs of {plan.steps:,} steps of {plan.batch_size} photos"])
    facts += [
        ["input", _input(plan)],
        ["descriptor", f"{plan.descriptor_length:,} numbers"],
        ["memory", f"about {_mib(plan.cache_needed_bytes)} for decoded photos; --cache-mb is "
                   f"{plan.cache_bytes >> 20:,}: {kept}"],
        ["disk", _disk(plan)],
        ["near-copies", "counted across splits after training; penult inspect lists them before"],
    ]  # fmt: skip
    facts.append(["SVM", f"{plan.svm}; at most about {duration(plan.svm_s)}"])
    if plan.trials:
        runs = sum(trial.repeats for trial in plan.trials)
        facts.append(["time", f"at most about {duration(plan.most_s)} for all {runs} trials, and their SVMs"])
    elif plan.epochs:
        each = f"about {duration(plan.epoch_s)} an epoch; "
        facts.append(["time", f"{each}at most about {duration(plan.most_s)}, and the export"])
    else:
        facts.append(["time", f"about {duration(plan.most_s)}, and the export"])
    return table(facts, left=2)


def _disk(plan: Plan) -> str:
    checkpoint = f"a checkpoint of about {_mib(plan.checkpoint_bytes)}"
    if plan.trials:
        return f"table and plot in {plan.bundle}; during each trial {checkpoint}"
    return f"bundle {plan.bundle} of about {_mib(plan.bundle_bytes)}; during training {checkpoint}"


def _mib(count: int) -> str:
    return f"{max(1, round(count / 2**20)):,} MiB"
