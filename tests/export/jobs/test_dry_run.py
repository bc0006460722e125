"""`penult train --dry-run`: counts and sizes that are right, advice where it is due, and nothing learnt or written."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.export.splits import splits_of

from penult.bundle.preprocess import Preprocess
from penult.cli import main
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data import transforms
from penult.export.data.dataset import Splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.errors import SettingsError
from penult.export.jobs import dry_run, estimate, sweep
from penult.export.networks.architectures import get
from penult.export.networks.network import build, freeze_stages
from penult.export.training.checkpoint import Checkpoint
from penult.export.training.distributed import ALONE
from penult.export.training.history import History
from penult.export.training.schedule import plateau

Settings = Callable[..., TrainSettings]
CPU = torch.device("cpu")


def _splits(counts: dict[str, int], val: int = 1, test: int = 1) -> Splits:
    photos = [Photo(Path(f"{label}/{n}"), label) for label, count in enumerate(counts.values()) for n in range(count)]
    one = Photo(Path("x"), 0)
    return Splits(tuple(counts), tuple(photos), (one,) * val, (one,) * test, ())


@pytest.fixture
def planned(settings: Settings, few_digits: Path, tiny_weights: Path) -> dry_run.Plan:
    """The plan of a run on four digits with the first two stages frozen."""
    chosen = settings(data=few_digits, weights=str(tiny_weights), freeze=2, lr_stage_decay=0.5, batch_size=16)
    return dry_run.make(chosen, splits_of(chosen), CPU)


def test_counts_stages_and_rates_are_those_of_the_run(planned: dry_run.Plan):
    """Photos by class and part, what is frozen, and each stage's rate, are what the run would have."""
    assert planned.classes == ("0", "1", "2", "3")
    assert planned.photos == {"train": (20, 20, 20, 20), "val": (4, 4, 4, 4), "test": (10, 10, 10, 10)}
    rates = {stage.name: stage.rate for stage in planned.stages}
    assert rates == {
        "stage 1": None, "stage 2": None, "stage 3": 2.5e-5, "stage 4": 5e-5, "stage 5": 1e-4, "head": 1e-3,
    }  # fmt: skip
    assert sum(stage.parameters for stage in planned.stages) == 190_032 + 128 * 4 + 4
    assert (planned.head_epochs, planned.epochs, planned.steps) == (40, 30, 5)
    assert min(asdict(planned.batch).values()) > 0
    assert 0 < planned.epoch_s < planned.most_s


def test_a_frozen_network_has_no_epochs_of_its_own(settings: Settings, few_digits: Path, tiny_weights: Path):
    """With --freeze all only the head has a rate, and the time is that of describing every photo."""
    chosen = settings(data=few_digits, weights=str(tiny_weights), freeze=FREEZE_ALL)
    planned = dry_run.make(chosen, splits_of(chosen), CPU)
    assert [stage.name for stage in planned.stages if stage.rate is not None] == ["head"]
    assert (planned.epochs, planned.steps, planned.epoch_s, planned.batch.learn_s) == (0, 0, 0.0, 0.0)
    assert planned.most_s > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"crop": 40, "resize": 48}, "center crop of 40 x 40 pixels from a photo whose shorter side is 48"),
     ({"crop": 40, "resize": 48, "fit": "stretch"}, "center crop of 40 x 40 pixels from a photo whose both sides are 48"),
     ({"crop": 48, "fit": "stretch"}, "the whole photo, stretched to 48 x 48 pixels"),
     ({"crop": 48, "views": 2, "augment": "photo"}, "side is 48; serving uses 2 views of it, at 2 times the cost")],
)  # fmt: skip
def test_the_input_is_said(settings: Settings, few_digits: Path, changes: dict[str, Any], sentence: str):
    """The plan names the sizes that the run would use, and how much of a photo is seen."""
    chosen = settings(data=few_digits, **changes)
    planned = dry_run.make(chosen, splits_of(chosen), CPU)
    assert (planned.crop, planned.resize) == (changes["crop"], 48)
    assert sentence in "\n".join(dry_run.lines(planned))


def test_a_random_start_has_no_phase_of_the_head(settings: Settings, few_digits: Path):
    """Where the network learns anew, head and network learn together from the first epoch."""
    planned = dry_run.make(settings(data=few_digits), splits_of(settings(data=few_digits)), CPU)
    assert planned.head_epochs == 0
    assert {stage.rate for stage in planned.stages} == {1e-3}


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [0, 3, FREEZE_ALL])
def test_the_checkpoint_is_as_large_as_estimated(settings: Settings, tmp_path: Path, tiny_weights: Path, freeze: int):
    """The estimate is within a tenth (and torch.save's own 64 KiB) of a real checkpoint's size."""
    chosen = settings(weights=str(tiny_weights), freeze=freeze)
    net = build(get("tiny5"), chosen, classes=10)
    freeze_stages(net, get("tiny5"), freeze)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
    net(torch.zeros(2, 3, 32, 32))[0].sum().backward()
    optimizer.step()
    schedule = plateau(optimizer, chosen, math.inf)
    path = tmp_path / "checkpoint.pt"
    best = {key: value.clone() for key, value in net.state_dict().items()}
    Checkpoint(path, [], resume=False).save(1, net, optimizer, schedule, torch.amp.GradScaler("cpu"), best, History())
    estimated, _ = estimate.file_bytes(net, 10, get("tiny5").preprocess)
    assert estimated == pytest.approx(path.stat().st_size, rel=0.1, abs=1 << 16)


def test_the_bundle_is_as_large_as_estimated(trained, settings: Settings):
    """The estimate is within a half of a real bundle's size, most of which is the report here."""
    net = build(get("tiny5"), settings(), classes=10)
    _, estimated = estimate.file_bytes(net, 10, get("tiny5").preprocess)
    real = sum(path.stat().st_size for path in trained.folder.rglob("*") if path.is_file())
    assert estimated == pytest.approx(real, rel=0.5)


def test_the_memory_is_what_the_reader_uses(settings: Settings, tmp_path: Path):
    """The estimate is what the cache holds once every photo was cropped and cut: photos of all shapes, some small."""
    shapes = [(90, 60), (64, 64), (20, 30), (32, 200)]
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            image = Image.effect_noise(shapes[number % 4], 50 + number + 20 * label).convert("RGB")
            image.save(tmp_path / "photos" / name / f"{number}.png")
    splits, spec = splits_of(settings()), Preprocess(resize=32, crop=32)
    reader = PhotoReader(spec, Cache(1 << 30), 8)
    list(reader.augmented(splits.train, transforms.photo, "", "", ALONE.bounds))
    whole = reader.cache.used_bytes
    for part in (splits.train, splits.val, splits.test):
        list(reader.crops(part, ""))
    assert estimate.cache_bytes(splits, spec, learns_whole=True) == pytest.approx(reader.cache.used_bytes, abs=2)
    assert estimate.cache_bytes(splits, spec, learns_whole=False) == pytest.approx(reader.cache.used_bytes - whole)


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_is_extrapolated_batch_by_batch(settings: Settings):
    """Worked by hand: 100 training, 300 validation and 50 test photos in tens, everything in memory, on a CPU."""
    splits = _splits({"cat": 50, "dog": 50}, val=300, test=50)
    chosen = settings(weights="w.pt", freeze=3, batch_size=10, epochs=7)
    batch = estimate.Seconds(read_s=3.0, cut_s=1.0, learn_s=10.0, describe_s=2.0)
    epoch_s, most_s = estimate.durations(splits, chosen, batch, needed_bytes=1, shares_cores=True)
    assert epoch_s == 10 * (10 + 1) + 40 * 2  # training; then validation and 100 of training are measured
    assert most_s == 7 * epoch_s + 10 * 3 + 40 * 2 + 45 * (2 + 3)  # read whole; described before, and at the end


def test_reading_beside_a_device_costs_only_what_it_is_slower(settings: Settings):
    """On a GPU photos are read while it learns: the slower of the two decides."""
    splits, chosen = _splits({"cat": 50, "dog": 50}, val=200), settings(weights="w.pt", freeze=3, batch_size=10)
    for read_s, learn_s, each in ((3.0, 10.0, 10.0), (30.0, 10.0, 30.0)):
        batch = estimate.Seconds(read_s=read_s, cut_s=1.0, learn_s=learn_s, describe_s=0.0)
        epoch_s, _ = estimate.durations(splits, replace(chosen, cache_mb=0), batch, needed_bytes=1, shares_cores=False)
        assert epoch_s == 10 * each + 30 * read_s


def test_what_memory_has_no_room_for_is_read_again(settings: Settings):
    """With room for a quarter, three quarters of the reading come back in every epoch."""
    splits, chosen = _splits({"cat": 50, "dog": 50}, val=200), settings(weights="w.pt", freeze=3, batch_size=10)
    batch = estimate.Seconds(read_s=4.0, cut_s=0.0, learn_s=0.0, describe_s=0.0)
    epoch_s, _ = estimate.durations(splits, replace(chosen, cache_mb=1), batch, 4 << 20, shares_cores=True)
    assert epoch_s == (10 + 30) * 4.0 * 0.75


@pytest.mark.parametrize("kind", ["freeze", "labels"])
def test_a_sweep_is_planned_trial_by_trial(
    settings: Settings, few_digits: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Each trial takes what its own run would, with the step of its depth measured; the sweep takes all of them."""
    chosen = settings(data=few_digits, weights=str(tiny_weights), freeze=3, sweep=kind, repeats=2, batch_size=10)
    splits, measured = splits_of(chosen), []

    def measure(net: torch.nn.Module, _: object, tried: TrainSettings, *rest: object) -> estimate.Seconds:
        learning = sum(p.numel() for p in net.body.parameters() if p.requires_grad)
        measured.append((tried.freeze, learning))
        # Photos are in memory by the second time: only the first tells what reading takes.
        return estimate.Seconds(3.0 if len(measured) == 1 else 0.0, 1.0, 10.0 - tried.freeze, 2.0)

    monkeypatch.setattr(estimate, "measure", measure)
    planned = dry_run.make(chosen, splits, CPU)
    assert [depth for depth, _ in measured] == {"freeze": [3, 0, 1, 2, 4, 5], "labels": [3, 0]}[kind]
    assert [learning for _, learning in sorted(measured)] == sorted((n for _, n in measured), reverse=True)
    tried = sweep.trials(replace(chosen, repeats=1), splits)
    assert [(row.mode, row.repeats) for row in planned.trials] == [(trial.mode, 2) for trial in tried]
    for row, trial in zip(planned.trials, tried, strict=True):
        run, fewer = sweep.plan(chosen, splits, trial)
        batch = estimate.Seconds(3.0, 1.0, 10.0 - run.freeze, 2.0)
        assert row.photos == len(fewer.train)
        learning_s = 2 * estimate.durations(fewer, run, batch, planned.cache_needed_bytes, True)[1]
        assert learning_s < row.most_s < learning_s + 60  # the SVM's time is this machine's
    assert planned.most_s == pytest.approx(sum(row.most_s for row in planned.trials))


# -- advice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "changes", "said"),
    [
        ({"cat": 80, "dog": 20}, {}, []),
        ({"cat": 81, "dog": 20}, {}, ["--class-weights balanced"]),
        ({"cat": 30, "dog": 19}, {}, ["--freeze all"]),
        ({"cat": 90, "dog": 9}, {}, ["--class-weights balanced", "--freeze all"]),
        ({"cat": 30, "dog": 19}, {"freeze": FREEZE_ALL}, []),
        ({"cat": 30, "dog": 19}, {"weights": "none", "freeze": 0}, []),
        ({"cat": 30, "dog": 19}, {"sweep": "labels"}, []),
        ({"cat": 30, "dog": 30}, {"cache_mb": 4}, ["--cache-mb 5 "]),
        ({"cat": 30, "dog": 30}, {"cache_mb": 5}, []),
    ],
)
def test_advice_is_given_where_it_is_due(
    settings: Settings, counts: dict[str, int], changes: dict[str, Any], said: list[str]
):
    """Beyond 4 to 1 weights are advised, below 20 photos a frozen network, and more memory where photos stream."""
    chosen = settings(**({"weights": "w.pt", "freeze": 3} | changes))
    found = dry_run.advice(_splits(counts), chosen, needed_bytes=5 << 20)
    assert [option for option, line in zip(said, found, strict=True) if option not in line] == []


# -- on the command line -----------------------------------------------------------------------------------------------


def _tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def _words(few_digits: Path, *more: str) -> list[str]:
    return ["train", str(few_digits), "--arch", "tiny5", "--dry-run", "--device", "cpu", *more]


def test_nothing_is_written(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The plan is printed, the exit code is 0, and neither models/ nor the photos' folder has changed."""
    monkeypatch.chdir(tmp_path)
    before = _tree(few_digits)
    assert main(_words(few_digits, "--weights", "none", "--out", "models/digits")) == 0
    printed = capsys.readouterr().out
    assert _tree(few_digits) == before
    assert list(tmp_path.iterdir()) == []
    assert ["0", "20", "4", "10"] in [line.split() for line in printed.splitlines()]
    wanted = ("nothing is trained or written", "note: val split", "bundle models/digits/1 of about", "190,548 trained",
              "at most 30 epochs of 3 steps of 32 photos", "an epoch; at most about")  # fmt: skip
    assert [words for words in wanted if words not in printed] == []


def test_a_sweep_is_said_before_it_is_run(
    few_digits: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """With --sweep the plan has a row per trial and the time of all; no bundle is promised, and nothing is written."""
    words = ["--weights", str(tiny_weights), "--out", str(tmp_path / "digits"), "--sweep", "labels", "--repeats", "3"]
    assert main(_words(few_digits, *words)) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[1:4] for line in printed.splitlines() if line.startswith("fine-tuned")]
    assert rows == [["5", "20", "3"], ["10", "40", "3"], ["20", "80", "3"]]  # labels per class, photos, seeds
    wanted = ("nothing is trained or written", "labels per class", "for all 27 trials", "digits/sweep-labels")
    assert [words for words in wanted if words not in printed] == []
    assert "bundle" not in printed
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_plan(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """--json prints one object with every value of the plan, and the version that would be written."""
    (tmp_path / "digits" / "4").mkdir(parents=True)
    assert main(_words(few_digits, "--weights", "none", "--json", "--out", str(tmp_path / "digits"))) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == set(dry_run.Plan.__dataclass_fields__)
    assert printed["bundle"] == str(tmp_path / "digits" / "5")
    assert printed["photos"]["train"] == [20, 20, 20, 20]
    assert printed["stages"][0] == {"name": "stage 1", "modules": "stages.0", "parameters": 464, "rate": 1e-3}


def test_many_classes_are_cut_short():
    """A thousand classes do not fill the screen; the totals are those of all."""
    planned = dry_run.Plan(
        "resnet18", "imagenet", "cpu", "models/x/1", tuple(f"c{n}" for n in range(1000)),
        dict.fromkeys(("train", "val", "test"), (1,) * 1000), (), (), (), 256, 224, "crop", 1, 512, 40, 30, 32, 32, 1, 1, 1, 1,
        estimate.Seconds(1, 1, 1, 1), 1.0, 40.0, "linear kernel", 6000.0,
    )  # fmt: skip
    rows = [line.split() for line in dry_run.lines(planned)]
    assert ["c39", "1", "1", "1"] in rows
    assert not any(row[:1] == ["c40"] for row in rows)
    assert ["and", "960", "more", "classes"] in rows
    assert ["all", "1,000", "1,000", "1,000"] in rows
    assert ["SVM", "linear", "kernel;", "at", "most", "about", "40", "s"] in rows
    assert "at most about 1 h 40 min" in "\n".join(dry_run.lines(planned))


def test_weights_that_cannot_be_downloaded_are_said_and_the_plan_goes_on(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where torchvision's weights do not come, the plan says that the run would stop, and counts all the same."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))  # nowhere to download to, with or without a network
    words = ["train", str(few_digits), "--arch", "squeezenet1_1", "--dry-run", "--device", "cpu", "--batch-size", "4"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "a run would fail: the weights of squeezenet1_1 cannot be downloaded" in printed
    assert "386,176" in printed


@pytest.mark.parametrize("weights", ["absent.pt", "imagenet"])
def test_weights_that_there_are_not_stop_the_plan_as_they_would_the_run(
    settings: Settings, few_digits: Path, weights: str
):
    """A file that is missing, and weights that torchvision does not have for this network, are errors here too."""
    with pytest.raises(SettingsError) as caught:
        dry_run.show(settings(data=few_digits, weights=weights, freeze=3))
    assert caught.value.reason == "WEIGHTS"


def test_photos_that_vanish_do_not_stop_the_estimate(settings: Settings, make_photos: Callable, tmp_path: Path):
    """A photo that is gone since it was checked is left out of the mean size."""
    folder = make_photos(tmp_path / "photos", {"cat": 8, "dog": 8})
    splits = splits_of(settings())
    expected = estimate.cache_bytes(splits, Preprocess(resize=32, crop=32), learns_whole=True)
    splits.train[0].path.unlink()
    assert folder.is_dir()
    assert estimate.cache_bytes(splits, Preprocess(resize=32, crop=32), learns_whole=True) == expected
