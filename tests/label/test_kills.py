"""The label file under kill -9: what was acknowledged is in it, it is readable, and labelling goes on."""

import csv
import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penult.export.data import tables
from penult.label.labels_file import LabelsFile

SCRIPT = Path(__file__).parent / "answering.py"
SPEC = importlib.util.spec_from_file_location("answering", SCRIPT)
answering = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(answering)
# `make kills`: a hundred.
KILLS = int(os.environ.get("PENULT_KILLS", "8"))


def killed(path: Path, first: int, lines: int, seconds: float) -> int:
    """Let a process acknowledge some changes, kill it, and return the number of the first that it did not acknowledge."""
    command = [sys.executable, SCRIPT, path, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        said = [process.stdout.readline() for _ in range(lines)]
        time.sleep(seconds)
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
    numbers = [int(line) for line in said if line.endswith("\n")]
    assert numbers == list(range(first, first + len(numbers)))
    return first + len(numbers)


def labels_in(path: Path, delimiter: str) -> dict[str, str]:
    """The labels as penult train and the module csv read them; a row that the kill cut off is left out."""
    whole = path.with_name("whole.csv")
    data = path.read_bytes()
    whole.write_bytes(data[: data.rfind(b"\n") + 1])
    by_train = {row.image: row.label for row in tables.read_csv(whole)}
    with whole.open(newline="", encoding="utf-8") as file:
        assert {
            row["image"]: row["label"] for row in csv.DictReader(file, delimiter=delimiter, strict=True)
        } == by_train
    return by_train


@pytest.mark.system
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("header", ["", "split;label;image\r\n"])
def test_kills_lose_nothing(tmp_path: Path, header: str):
    """Killed at random moments, the file holds every acknowledged change, and perhaps a part of the next one."""
    chance, path, number = random.Random(5), tmp_path / "labels.csv", 0
    expected: dict[str, str | None] = {}
    if header:
        path.write_text(header, newline="")
    for _ in range(KILLS):
        after = killed(path, number, chance.randint(1, 60), chance.uniform(0, 0.02))
        for acknowledged in range(number, after):
            expected |= answering.change(acknowledged)
        begun = answering.change(after)
        found = labels_in(path, ";" if header else ",")
        wrong = {
            image: (found.get(image), expected.get(image))
            for image in found.keys() | expected.keys()
            if found.get(image) not in (expected.get(image), begun.get(image, expected.get(image)))
        }
        assert wrong == {}
        number = after
    print(f"\n{KILLS} kills, {number} changes acknowledged")
    assert number >= KILLS
    file = LabelsFile(path, tmp_path / "photos")  # repairs what the last kill cut off
    assert {image: label.label for image, label in file.labels.items()} == {
        row.image: row.label for row in tables.read_csv(path)
    }
    file.close()
