"""penult label --replay: the JSON of one strategy, and the table, sentence and picture of both."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.label import made_up

from penult import cli
from penult.label import replay
from penult.label.replay import Truth, play

# They play whole sessions, with hundreds of fits.
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def truth() -> Truth:
    """A pool of 600 photos, of which few are difficult, and 600 others."""
    inputs, labels = made_up.photos(1200, noise=0.75)
    return Truth(inputs[:600], np.arange(600), labels[:600], inputs[600:], labels[600:], made_up.NAMES)


def test_chosen_labels_are_worth_more(truth: Truth):
    """At 50 labels and above, the mean accuracy of two seeds with chosen labels is above that with random ones."""
    curves = {
        strategy: np.mean([[value for _, value in play(truth, strategy, 100, seed).curve] for seed in range(2)], axis=0)
        for strategy in ("active", "random")
    }
    assert (curves["active"][4:] > curves["random"][4:]).mean() > 0.7
    assert curves["active"][4:].mean() > curves["random"][4:].mean() + 0.005


def test_a_curve_has_a_point_every_ten_labels(truth: Truth):
    """Points come every ten labels and at the end, and the same seed gives the same curve."""
    played = play(truth, "active", 45, seed=3)
    assert [labels for labels, _ in played.curve] == [10, 20, 30, 40, 45]
    assert played == play(truth, "active", 45, seed=3)
    assert played.as_json() == {"strategy": "active", "curve": [[n, round(a, 6)] for n, a in played.curve]}
    small = Truth(truth.inputs[:23], truth.groups[:23], truth.labels[:23], truth.inputs, truth.labels, truth.classes)
    assert play(small, "active").curve[-1] == pytest.approx(play(small, "random").curve[-1])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([0.5, 0.7, 0.8, 0.9], "20 chosen labels reach 70.0 %, the accuracy of 20 random labels: no fewer"),
        ([0.7, 0.7, 0.8, 0.9], "10 chosen labels reach 70.0 %, the accuracy of 20 random labels: 50 % fewer"),
        ([0.5, 0.6, 0.8, 0.9], "30 chosen labels reach 70.0 %, the accuracy of 20 random labels: 50 % more"),
        ([0.5, 0.5, 0.5, 0.6], "chosen labels do not reach 70.0 %, the accuracy of 20 random labels"),
    ],
)
def test_the_sentence_says_what_is_saved(chosen: list[float], expected: str):
    """Fewer, as many, more or too few labels are named as such."""
    assert replay.sentence([10, 20, 30, 40], chosen, [0.5, 0.7, 0.8, 0.8]) == expected


@pytest.fixture
def penult(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in this process: (exit code, stdout, stderr)."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return cli.main([str(word) for word in argv]), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def digits_truth(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of digits, and a label file that names 60 to learn from and 40 to test."""
    path = tmp_path_factory.mktemp("truth") / "truth.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split"])
        for split, count in (("train", 15), ("test", 10)):
            for digit in "0123":
                for photo in sorted((digits / split / digit).iterdir())[:count]:
                    writer.writerow([f"{split}/{digit}/{photo.name}", digit, split])
    return digits, path


def test_the_command_prints_json(penult: Callable[..., tuple[int, str, str]], digits_truth: tuple[Path, Path]):
    """--json prints strategy and curve of the named strategy, and nothing else on standard output."""
    folder, path = digits_truth
    options = ("--arch", "tiny5", "--weights", "none", "--budget", "25", "--json")
    for strategy in ("active", "random"):
        code, out, error = penult("label", folder, "--replay", path, "--strategy", strategy, *options)
        assert code == 0, error
        found = json.loads(out)
        assert found["strategy"] == strategy
        assert [labels for labels, _ in found["curve"]] == [10, 20, 25]
        assert all(0 <= value <= 1 for _, value in found["curve"])


def test_the_command_compares_and_draws(
    penult: Callable[..., tuple[int, str, str]], digits_truth: tuple[Path, Path], tmp_path: Path
):
    """Without --json there are a table, a sentence and a picture; without test rows some photos are set aside."""
    folder, path = digits_truth
    some = tmp_path / "some.csv"
    some.write_text("".join(line for line in path.read_text().splitlines(True) if "test" not in line))
    picture = tmp_path / "picture.svg"
    code, out, error = penult(
        "label", folder, "--replay", some, "--arch", "tiny5", "--weights", "none", "--out", picture
    )
    assert code == 0, error
    assert "12 images are set aside" in error
    assert out.splitlines()[0].split() == ["labels", "chosen", "random"]
    assert "random labels" in out
    assert str(picture) in out
    assert picture.read_bytes().startswith(b"<svg")


def test_a_file_without_two_classes_is_refused(
    penult: Callable[..., tuple[int, str, str]], digits_truth: tuple[Path, Path], tmp_path: Path
):
    """One class to learn from is one line that says so."""
    folder, path = digits_truth
    one = tmp_path / "one.csv"
    lines = path.read_text().splitlines(True)
    one.write_text("".join([lines[0], *(line for line in lines if "/0/" in line)]))
    code, _, error = penult("label", folder, "--replay", one, "--arch", "tiny5", "--weights", "none", "--json")
    assert code == 1
    assert "fewer than two classes" in error.splitlines()[-1]
