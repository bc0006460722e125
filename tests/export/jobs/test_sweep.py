"""penult train --sweep: every way is tried once, for real; what was done is kept; validation photos choose."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.export.splits import splits_of

from penult.export.config.train import FREEZE_ALL, LAYERS, TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.errors import SettingsError
from penult.export.evaluation import svm
from penult.export.jobs.plot_sweep import plot_sweep
from penult.export.jobs.run_sweep import run_sweep
from penult.export.jobs.sweep import (
    AS_GIVEN,
    CONTINUE,
    FINE_TUNED,
    FROZEN,
    RANDOM,
    REINIT,
    SCRATCH,
    TRAINED,
    Outcome,
    Sweep,
    Trial,
    plan,
    trials,
)
from penult.export.jobs.sweep_view import advice, best_freeze, outcome_line, step, table, to_csv

PATIENCE_S = 240


@pytest.fixture(scope="module")
def options(few_digits: Path, tiny_weights: Path) -> dict:
    """Settings of a short run."""
    return {"data": few_digits, "arch": "tiny5", "weights": str(tiny_weights), "augment": "gentle", "head_epochs": 4,
            "epochs": 2, "lr_backbone": 1e-3, "batch_size": 16, "svm": "linear", "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def frozen(options: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """A whole sweep over freezing depths."""
    out = tmp_path_factory.mktemp("sweep") / "digits"
    return run_sweep(TrainSettings(**options, out=out, sweep="freeze")), out / "sweep-freeze"


def _splits(options: dict) -> Splits:
    return splits_of(TrainSettings(**options, out=Path("unused")))


def test_freezing_is_tried_at_every_depth(frozen: tuple[Sweep, Path]):
    """0 to 5 stages, continued and re-initialised, and all frozen with the SVM: thirteen trials, each with accuracies."""
    found = {(outcome.mode, outcome.at) for outcome in frozen[0].outcomes}
    assert found == {(mode, at) for mode in (CONTINUE, REINIT) for at in range(6)} | {(FROZEN, FREEZE_ALL)}
    assert len(frozen[0].outcomes) == 13
    for outcome in frozen[0].outcomes:
        assert 0 <= outcome.val_accuracy <= 1
        assert outcome.test_accuracy in (outcome.dense_test_accuracy, outcome.svm_test_accuracy)
        assert outcome.test_accuracy * frozen[0].test_photos == pytest.approx(round(outcome.test_accuracy * 40))


def test_the_svm_is_the_one_asked_for(options: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Kernel and class weights reach every SVM of a sweep, as they reach the one of a plain run."""
    fitted = []

    def fit(descriptors: np.ndarray, labels: np.ndarray, *how: object, **more: object) -> svm.FittedSvm:
        fitted.append(svm_fit(descriptors, labels, *how, **more))
        return fitted[-1]

    svm_fit = svm.fit
    monkeypatch.setattr(svm, "fit", fit)
    asked = {"svm": "rbf", "class_weights": "balanced", "epochs": 1, "head_epochs": 1, "seed": 5}
    run_sweep(TrainSettings(**options | asked, out=tmp_path / "digits", sweep="labels"))
    assert [(one.kernel, one.class_weight, one.seed) for one in fitted] == [("rbf", "balanced", 5)] * 9


def test_table_and_picture_are_written_and_nothing_is_published(frozen: tuple[Sweep, Path]):
    """table.csv has a row per trial, sweep.png is a picture; no version and no checkpoint is left."""
    sweep, folder = frozen
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [float(row["test_accuracy"]) for row in rows] == [outcome.test_accuracy for outcome in sweep.outcomes]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in folder.parent.iterdir()] == ["sweep-freeze"]
    assert not list((folder / ".training").iterdir())


def test_the_same_trial_is_the_same_run(frozen: tuple[Sweep, Path], options: dict, tmp_path: Path):
    """A trial's dense accuracy is what a plain run with its settings reports."""
    from penult.export.jobs.train import train

    (outcome,) = frozen[0].points(CONTINUE)[2]
    result = train(TrainSettings(**options, out=tmp_path / "digits", freeze=2))
    assert result.metrics["test"]["dense"]["accuracy"] == pytest.approx(outcome.dense_test_accuracy)


@pytest.mark.system
def test_a_killed_sweep_goes_on(frozen: tuple[Sweep, Path], options: dict, tmp_path: Path):
    """kill -9 after some trials: --resume keeps those and ends with the uninterrupted sweep's accuracies."""
    out = tmp_path / "digits"
    words = [w for k, v in options.items() if k != "data" for w in (f"--{k.replace('_', '-')}", str(v))]
    command = [sys.executable, "-m", "penult.cli", "train", str(options["data"]), "--out", str(out), *words]
    process = subprocess.Popen([*command, "--sweep", "freeze"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record, ends = out / "sweep-freeze" / "trials.json", time.monotonic() + PATIENCE_S
    while not record.exists() or len(json.loads(record.read_bytes())["outcomes"]) < 3:
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    done = json.loads(record.read_bytes())["outcomes"]
    resumed = run_sweep(TrainSettings(**options, out=out, sweep="freeze", resume=True))
    assert [vars(outcome) for outcome in resumed.outcomes[: len(done)]] == done
    for one, other in zip(resumed.outcomes, frozen[0].outcomes, strict=True):
        assert replace(one, seconds=0) == replace(other, seconds=0)


def test_a_finished_sweep_is_drawn_again(frozen: tuple[Sweep, Path], options: dict):
    """Cut off after its last record and before its picture, a sweep that is resumed tries nothing and draws it."""
    folder = frozen[1]
    for name in ("sweep.png", "table.csv"):
        (folder / name).unlink()
    before = (folder / "trials.json").read_bytes()
    resumed = run_sweep(TrainSettings(**options, out=folder.parent, sweep="freeze", resume=True))
    assert resumed == frozen[0]
    assert (folder / "trials.json").read_bytes() == before
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "table.csv").read_text() == to_csv(resumed)


def test_a_sweep_of_other_settings_is_not_resumed(frozen: tuple[Sweep, Path], options: dict):
    """--resume with another setting is refused in one line."""
    with pytest.raises(SettingsError) as caught:
        run_sweep(TrainSettings(**options | {"epochs": 3}, out=frozen[1].parent, sweep="freeze", resume=True))
    assert caught.value.reason == "RESUME"


def test_labels_are_nested_subsets(options: dict):
    """Fewer labels are part of more, balanced, with a share of the validation photos; all three ways see the same."""
    splits, settings = _splits(options), TrainSettings(**options, out=Path("unused"), sweep="labels")
    wanted = trials(settings, splits)
    assert {trial.at for trial in wanted} == {5, 10, 20}
    assert {trial.mode for trial in wanted} == {FROZEN, FINE_TUNED, SCRATCH}
    seen = {}
    for trial in wanted:
        chosen, fewer = plan(settings, splits, trial)
        assert [sum(photo.label == label for photo in fewer.train) for label in range(4)] == [trial.at] * 4
        assert fewer.test == splits.test
        assert len(fewer.val) == max(4, round(len(splits.val) * trial.at / 20))
        assert seen.setdefault(trial.at, fewer) == fewer
        assert (chosen.weights == "none") == (trial.mode == SCRATCH)
        assert (chosen.freeze == FREEZE_ALL) == (trial.mode == FROZEN)
    assert set(seen[5].train) < set(seen[10].train) < set(seen[20].train)


@pytest.mark.parametrize(
    ("most", "counts"),
    [(4, [4]), (5, [5]), (7, [7]), (8, [5, 8]), (105, [5, 10, 20, 50, 105]), (150, [5, 10, 20, 50, 100, 150])],
)
def test_the_last_step_in_labels_is_a_real_one(most: int, counts: list[int]):
    """Counts just below all photos are left out: what labels bring cannot be told from a handful."""
    photos = tuple(Photo(Path(f"{row}.png"), row % 2, "0" * 64) for row in range(2 * most))
    settings = TrainSettings(Path("photos"), Path("unused"), sweep="labels")
    tried = trials(settings, Splits(("cat", "dog"), photos, photos, photos, ()))
    assert sorted({trial.at for trial in tried}) == counts


def test_labels_are_learnt_from(options: dict, tmp_path: Path):
    """A sweep over labels runs to its end, in JSON on the command line, with advice and a picture."""
    words = [w for k, v in options.items() if k != "data" for w in (f"--{k.replace('_', '-')}", str(v))]
    result = subprocess.run(
        [sys.executable, "-m", "penult.cli", "train", str(options["data"]), "--out", str(tmp_path / "digits"), *words,
         "--sweep", "labels", "--json"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert len(answer["trials"]) == 9
    assert "photos per class" in answer["advice"]
    assert (Path(answer["folder"]) / "sweep.png").is_file()


def test_repeats_have_seeds_of_their_own(options: dict):
    """With --repeats, every trial is there once per seed."""
    settings = TrainSettings(**options, out=Path("unused"), sweep="freeze", repeats=3)
    wanted = trials(settings, _splits(options))
    assert len(wanted) == len(set(wanted)) == 39
    planned = [plan(settings, _splits(options), trial)[0] for trial in wanted]
    assert {(chosen.seed, chosen.sweep, chosen.repeats) for chosen in planned} == {(n, "no", 1) for n in range(3)}


def test_a_sweep_needs_weights(options: dict):
    """Without weights there is nothing to keep: refused in one line, but over layers."""
    with pytest.raises(SettingsError, match="--weights"):
        TrainSettings(**options | {"weights": "none", "freeze": 0}, out=Path("unused"), sweep="freeze")


@pytest.fixture(scope="module")
def layers(options: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """A whole sweep over layers, with the first two stages frozen."""
    out = tmp_path_factory.mktemp("layers") / "digits"
    return run_sweep(TrainSettings(**options, out=out, freeze=2, sweep="layers")), out / "sweep-layers"


def test_every_layer_is_tried_before_and_after(layers: tuple[Sweep, Path]):
    """Six layers of two networks: frozen stages and equal layers have equal outcomes; layers are named."""
    sweep, folder = layers
    assert [(o.mode, LAYERS[o.at]) for o in sweep.outcomes] == [
        (mode, name) for mode in (AS_GIVEN, FINE_TUNED) for name in LAYERS if name != "dense1"
    ]
    given, tuned = (sweep.points(mode) for mode in (AS_GIVEN, FINE_TUNED))
    for at in (0, 1):
        assert tuned[at][0].test_accuracy == given[at][0].test_accuracy
    for points in (given, tuned):
        assert points[LAYERS.index("penultimate")][0].val_accuracy == points[LAYERS.index("stage5")][0].val_accuracy
    assert {o.epochs for o in sweep.outcomes if o.mode == AS_GIVEN} == {0}
    assert all(o.dense_test_accuracy is None and o.svm_test_accuracy == o.test_accuracy for o in sweep.outcomes)
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["at"] for row in rows][:2] == ["stage1", "stage2"]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not list((folder / ".training").iterdir())


def test_a_layer_is_what_a_run_publishes(layers: tuple[Sweep, Path], options: dict, tmp_path: Path):
    """The SVM of a layer has the accuracy of a run with --descriptor, where training photos choose C in both."""
    from penult.export.jobs.train import train

    chosen = TrainSettings(**options, out=tmp_path / "digits", freeze=2, descriptor="stage4")
    result = train(chosen)
    (outcome,) = layers[0].points(FINE_TUNED)[LAYERS.index("stage4")]
    assert result.metrics["val"]["svm"]["accuracy"] == pytest.approx(outcome.val_accuracy)


def test_a_sweep_over_layers_goes_on(layers: tuple[Sweep, Path], options: dict, tmp_path: Path):
    """Cut off between two layers, it fits the SVMs that are missing, and ends with the same outcomes."""
    folder = tmp_path / "digits" / "sweep-layers"
    folder.mkdir(parents=True)
    record = json.loads((layers[1] / "trials.json").read_bytes())
    record["outcomes"] = record["outcomes"][:9]
    (folder / "trials.json").write_text(json.dumps(record))
    chosen = TrainSettings(**options, out=folder.parent, freeze=2, sweep="layers", resume=True)
    resumed = run_sweep(chosen)
    assert [replace(o, seconds=0) for o in resumed.outcomes] == [replace(o, seconds=0) for o in layers[0].outcomes]


def test_layers_of_a_random_start_and_of_a_frozen_network(settings, options: dict):
    """From random weights the modes are named so; with all layers frozen there is one network; AlexNet has dense1."""
    splits = _splits(options)
    modes = {trial.mode for trial in trials(settings(sweep="layers"), splits)}
    assert modes == {RANDOM, TRAINED}
    assert plan(settings(sweep="layers"), splits, Trial(TRAINED, 0, 0))[0].freeze == 0
    given = TrainSettings(**options, out=Path("unused"), sweep="layers", freeze=FREEZE_ALL)
    assert {trial.mode for trial in trials(given, splits)} == {AS_GIVEN}
    deep = trials(settings(sweep="layers", arch="alexnet", repeats=2), splits)
    assert [LAYERS[trial.at] for trial in deep if (trial.mode, trial.repeat) == (TRAINED, 1)] == list(LAYERS)


def test_advice_on_layers_comes_from_validation():
    """Each network's best layer and whether the last falls below it; the default layer wins a tie, as given first."""
    stage2, stage3, stage4, last = (LAYERS.index(name) for name in ("stage2", "stage3", "stage4", "penultimate"))
    found = {(AS_GIVEN, stage2): (0.97, 0.9), (AS_GIVEN, stage4): (0.9, 0.7), (AS_GIVEN, last): (0.8, 0.99),
             (FINE_TUNED, stage4): (0.85, 0.8), (FINE_TUNED, last): (0.86, 0.8)}  # fmt: skip
    assert advice(_made_up("layers", found, val=300)) == (
        "as given: best on validation photos at stage2 (97.0%), then it falls to 80.0% at penultimate; fine-tuned: best on "
        "validation photos at penultimate (86.0%); use stage4 of the network as given (--freeze all --descriptor stage4)"
    )
    found = {(AS_GIVEN, stage3): (0.9, 0.9), (AS_GIVEN, last): (0.895, 0.9), (FINE_TUNED, last): (0.9, 0.9)}
    assert advice(_made_up("layers", found, val=300)).endswith(
        "use the penultimate layer, the default, of the network as given (--freeze all), which ties with the best within "
        "one standard error"
    )
    found = {(RANDOM, stage3): (0.9, 0.9), (TRAINED, last): (0.6, 0.6)}
    assert advice(_made_up("layers", found, val=300)).endswith(
        "use the penultimate layer, the default, of the network after training"
    )


def _made_up(
    kind: str,
    accuracies: dict[tuple[str, int], tuple[float, float]],
    test_photos: int = 200,
    repeats: int = 1,
    val: int = 0,
) -> Sweep:
    outcomes = [
        Outcome(*(mode, at, repeat, 100, "dense", val, test, test, test - 0.01, 5, 1.0))
        for repeat in range(repeats)
        for (mode, at), (val, test) in accuracies.items()
    ]
    return Sweep(kind, tuple(outcomes), test_photos, val)


def test_advice_on_freezing_comes_from_validation():
    """The depth named is the best on validation photos, not on test photos."""
    sweep = _made_up("freeze", {(CONTINUE, 0): (0.8, 0.99), (CONTINUE, 3): (0.9, 0.7), (REINIT, 1): (0.85, 0.8)})
    assert advice(sweep) == "best on validation photos: --freeze 3 (90.0%)"
    sweep = _made_up("freeze", {(REINIT, 2): (0.95, 0.9), (FROZEN, FREEZE_ALL): (0.9, 0.9)})
    assert advice(sweep) == "best on validation photos: --freeze 2 --reinit (95.0%)"
    sweep = _made_up("freeze", {(REINIT, 2): (0.85, 0.9), (FROZEN, FREEZE_ALL): (0.9, 0.9)})
    assert advice(sweep) == "best on validation photos: --freeze all (90.0%)"


def test_depths_that_tie_are_told_and_the_most_frozen_is_taken():
    """Six ways within one standard error (two of 100 photos at 96 %): all is named, with the rule; the picture agrees."""
    ways = {(CONTINUE, at): 0.95 for at in range(4)} | {(CONTINUE, 5): 0.96, (REINIT, 2): 0.93}
    sweep = _made_up(
        "freeze", {key: (val, 0.9) for key, val in (ways | {(FROZEN, FREEZE_ALL): 0.945}).items()}, val=100
    )
    assert advice(sweep) == (
        "best on validation photos: --freeze 5 (96.0%), but 6 settings tie within one standard error (93.5% or more of "
        "100 photos); use --freeze all (94.5%), which has the most frozen stages and trains fastest"
    )
    assert best_freeze(sweep) == (FROZEN, FREEZE_ALL)
    sweep = _made_up("freeze", {(REINIT, 3): (1.0, 0.9), (CONTINUE, 3): (1.0, 0.9), (CONTINUE, 0): (0.9, 0.9)}, val=20)
    assert advice(sweep).startswith(
        "best on validation photos: --freeze 3 (100.0%); it has the most frozen stages of 2 settings that tie"
    )
    assert best_freeze(sweep) == (CONTINUE, 3)


def test_seeds_that_differ_widen_a_tie():
    """Where the best way's own seeds differ by more than chance, what lies among them ties with it."""
    sweep = _made_up("freeze", {(CONTINUE, 1): (0.9, 0.9), (CONTINUE, 4): (0.86, 0.9)}, val=10_000, repeats=2)
    assert best_freeze(sweep) == (CONTINUE, 1)
    moved = [replace(o, val_accuracy=o.val_accuracy + (0.05, -0.05)[o.repeat]) for o in sweep.outcomes]
    assert best_freeze(replace(sweep, outcomes=tuple(moved))) == (CONTINUE, 4)


def test_the_line_of_a_trial_is_that_trials():
    """What is said after a trial are its own figures, whatever stands last in the table; all is never called 6."""
    sweep = _made_up("freeze", {(FROZEN, FREEZE_ALL): (0.5, 0.4), (CONTINUE, 5): (0.8, 0.7)})
    first, second = sweep.outcomes
    assert outcome_line(sweep, first).startswith(
        "frozen + SVM, all stages frozen: validation photos correct: 50.0%, test photos: 80 of 200,"
    )
    assert outcome_line(sweep, second).startswith(
        "continue, 5 stages frozen: validation photos correct: 80.0%, test photos: 140 of 200,"
    )
    assert [row["at"] for row in csv.DictReader(to_csv(sweep).splitlines())] == ["all", "5"]


@pytest.mark.parametrize(
    ("accuracies", "diagnosis", "points"),
    [
        ((0.6, 0.8), "label more", "gain 10.0"),
        ((0.98, 0.99), "gain little", "gain 0.5"),
        ((0.9, 0.88), "gain little", "gain 0.0"),
    ],
)
def test_advice_on_labels_follows_the_power_law(accuracies: tuple[float, float], diagnosis: str, points: str):
    """Where doubling halved the error it will halve it again; where it brought nothing, label no more."""
    found = {(FINE_TUNED, 10): (0.5, accuracies[0]), (FINE_TUNED, 20): (0.5, accuracies[1])}
    sweep = _made_up("labels", found, test_photos=2000)
    assert diagnosis in advice(sweep)
    assert points in advice(sweep)


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("accuracies", [(0.9, 0.9), (0.85, 0.925), (0.9, 0.875), (1.0, 1.0), (0.45, 1.0)])
def test_no_advice_on_labels_that_chance_could_give(accuracies: tuple[float, float], repeats: int):
    """Within what 40 test photos leave open there is no diagnosis, but the way to one; more seeds test on no more photos."""
    found = {(FINE_TUNED, 10): (0.5, accuracies[0]), (FINE_TUNED, 20): (0.5, accuracies[1])}
    said = advice(_made_up("labels", found, test_photos=40, repeats=repeats))
    assert "by 40 test photos, twice as many may gain 0 to" in said
    assert (
        "which does not show whether to label more; repeat the sweep with more test photos (--test or DATA/test)"
        in said
    )
    assert "gain little" not in said
    assert "\n" not in said


def test_what_twice_the_labels_may_bring_is_bounded():
    """Worked by hand: errors of 23 % at most (Wilson) and a step of at most 14.4 points (Newcombe), on 40 photos."""
    found = {(FINE_TUNED, 10): (0.5, 0.9), (FINE_TUNED, 20): (0.5, 0.9)}
    errors, largest_step = 0.2305, 0.1438
    most = errors * (1 - errors / (errors + largest_step))
    assert f"0 to {100 * most:.1f} points" in advice(_made_up("labels", found, test_photos=40))


@pytest.mark.parametrize(
    ("photos", "right", "published"),
    [(10, (3, 9), (0.1705, 0.8090)), (7, (2, 6), (0.0582, 0.8062)), (10, (0, 10), (0.6075, 1.0))],
)
def test_the_interval_of_a_step_is_newcombes(photos: int, right: tuple[int, int], published: tuple[float, float]):
    """Examples b, c and h of Newcombe 1998, table II, by his method 10."""
    sweep = _made_up("labels", {(FROZEN, n): (0.5, count / photos) for n, count in enumerate(right)}, photos)
    assert step(*sweep.points(FROZEN).values(), photos) == pytest.approx(published, abs=6e-5)


def test_enough_test_photos_tell_that_labels_bring_nothing():
    """No step at all is an answer once the photos leave less open than what would be worth labelling for."""
    found = {(FROZEN, 10): (0.5, 0.9), (FROZEN, 20): (0.5, 0.9)}
    assert "gain little" in advice(_made_up("labels", found, test_photos=10_000))
    assert "does not show whether to label more" in advice(_made_up("labels", found, test_photos=1_000))


def test_repeats_that_differ_leave_more_open():
    """Where the seeds part by more than chance on the test photos, the step is as uncertain as they are."""
    sweep = _made_up("labels", {(FROZEN, 10): (0.5, 0.7), (FROZEN, 20): (0.5, 0.75)}, test_photos=10_000, repeats=2)
    assert "label more" in advice(sweep)
    moved = [replace(o, test_accuracy=o.test_accuracy + (0.08, -0.08)[o.repeat]) for o in sweep.outcomes]
    assert "does not show whether to label more" in advice(replace(sweep, outcomes=tuple(moved)))


def test_advice_on_labels_is_of_the_mode_that_validation_chose():
    """The way to learn that is advised on is the best on validation photos, however the test photos came out."""
    found = {
        (FROZEN, 10): (0.6, 0.9),
        (FROZEN, 20): (0.7, 0.99),
        (FINE_TUNED, 10): (0.5, 0.6),
        (FINE_TUNED, 20): (0.8, 0.8),
    }
    assert advice(_made_up("labels", found)).startswith(
        "fine-tuned: from 10 to 20 photos per class, accuracy went from 60.0% to 80.0%"
    )


def test_few_photos_have_intervals_in_the_table():
    """All of eighteen photos right is "82–100 %" in the table and a count in a trial's line; of thousands, 100.0 %."""
    found = {(FROZEN, 6): (1.0, 1.0)}
    few = replace(_made_up("freeze", found, test_photos=18), val_photos=20)
    assert table(few)[0][2:4] == ["84–100 %", "82–100 %"]
    assert "validation photos correct: 20 of 20, test photos: 18 of 18," in outcome_line(few, few.outcomes[0])
    many = replace(_made_up("freeze", found, test_photos=5000), val_photos=5000)
    assert table(many)[0][2:4] == ["100.0%", "100.0%"]


@pytest.mark.parametrize("kind", ["freeze", "labels", "layers"])
def test_pictures_show_every_trial(kind: str):
    """Both sweeps are drawn, with their axis; the table has a row per place and mode."""
    random = np.random.default_rng(0)
    modes = {"freeze": (CONTINUE, REINIT), "labels": (FROZEN, FINE_TUNED, SCRATCH), "layers": (AS_GIVEN, FINE_TUNED)}[
        kind
    ]
    places = {"freeze": range(6), "labels": (5, 10, 20, 50, 91), "layers": (0, 1, 2, 3, 4, 6)}[kind]
    sweep = _made_up(kind, {(mode, at): (0.8, float(random.uniform(0.6, 0.95))) for mode in modes for at in places})
    assert plot_sweep(sweep).startswith(b"\x89PNG")
    assert len(table(sweep)) == len(modes) * len(places)
    assert len(to_csv(sweep).splitlines()) == 1 + len(sweep.outcomes)
    assert Trial(modes[0], places[0], 0) in {Trial(o.mode, o.at, o.repeat) for o in sweep.outcomes}
