"""`penult train --dry-run` with one class: what would be published."""

from dataclasses import dataclass

from penult.bundle.naming import versions
from penult.console import table
from penult.export.config import no_effect
from penult.export.config.known_networks import preprocess
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.outliers import load_outliers
from penult.export.evaluation.one_class import enough_photos
from penult.export.jobs.train import untrained


@dataclass(frozen=True)
class OneClassPlan:
    """The plan of a run with one class: `photos` by split, and how many held-out photos its threshold should have."""

    architecture: str
    weights: str
    bundle: str
    classes: tuple[str, ...]
    photos: dict[str, int]
    outliers: int
    notes: tuple[str, ...]
    novelty: str
    false_alarms: float
    photos_held_out: int
    photos_enough: int
    resize: int
    crop: int
    fit: str
    views: int
    descriptor_length: int


def make(settings: TrainSettings, splits: Splits) -> OneClassPlan:
    """Build the network, and return the plan; raise the PenultError of the run."""
    no_effect.refuse_for(settings, 1)
    notes = no_effect.notes_for_one_class(settings)
    outliers = 0
    if settings.outliers:
        found, more = load_outliers(settings.outliers, splits.classes[0])
        outliers, notes = len(found), notes + more
    net, spec = untrained(settings), preprocess(settings)
    return OneClassPlan(
        architecture=settings.arch,
        weights=settings.weights,
        bundle=str(settings.out / str(max(versions(settings.out), default=0) + 1)),
        classes=splits.classes,
        photos=splits.counts(),
        outliers=outliers,
        notes=notes + splits.notes,
        novelty=settings.novelty,
        false_alarms=settings.false_alarms,
        photos_held_out=len(splits.train) + len(splits.val),
        photos_enough=enough_photos(settings.false_alarms),
        resize=spec.resize,
        crop=spec.crop,
        fit=spec.fit,
        views=settings.views,
        descriptor_length=net.served_length,
    )


def lines(plan: OneClassPlan) -> list[str]:
    """Return the plan as text."""
    counts = ", ".join(f"{count:,} {part}" for part, count in plan.photos.items())
    enough = f"{plan.photos_held_out:,} photos choose it; {plan.photos_enough:,} are enough"
    facts = [
        ["photos", counts + (f", and {plan.outliers:,} outliers for the report" if plan.outliers else "")],
        ["network", "as given: one class trains no layer"],
        ["novelty", f"{plan.novelty}; the other measure is reported too"],
        ["threshold", f"for {100 * plan.false_alarms:g} % false alarms; {enough}"],
        ["input", f"{plan.crop} x {plan.crop} pixels"],
        ["descriptor", f"{plan.descriptor_length:,} numbers"],
        ["bundle", plan.bundle],
    ]
    return [
        f"{plan.architecture} from {plan.weights}, one class, {plan.classes[0]!r}; nothing is written",
        "",
        *(f"note: {line}" for line in plan.notes),
        *([""] if plan.notes else []),
        *table(facts, left=2),
    ]
