"""`penult label` under kill -9 while two pages answer: every label that the server acknowledged is in the file."""

import csv
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from penult.export.data import tables

pytestmark = pytest.mark.system
# `make kills`: a hundred.
KILLS = int(os.environ.get("PENULT_KILLS", "3"))
CLASSES = ("even", "odd")
ENOUGH = 600  # of 898 photos; then a new file is begun


class Page(threading.Thread):
    """A tab that answers what is next, and some of its earlier photos again, until the server is gone."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__()
        self.client = httpx.Client(base_url=url.partition("?")[0], trust_env=False, timeout=60)
        self.client.get("/", params={"token": url.partition("token=")[2]})
        self.chance = random.Random(seed)
        self.acknowledged: dict[str, str] = {}
        self.begun: dict[str, str] = {}
        self.answers = 0
        self.start()

    def run(self) -> None:
        try:
            while True:
                items = self.client.get("/api/next", params={"count": self.chance.choice([1, 1, 4])}).json()["items"]
                ids = [item["id"] for item in items if item["kind"] != "check"]  # those may be the other page's
                if not ids and not self.acknowledged:
                    continue
                if not ids or (self.acknowledged and self.chance.random() < 0.3):
                    ids = [self.chance.choice(list(self.acknowledged))]
                self.begun = {id_: self.chance.choice(CLASSES) for id_ in ids}
                answer = self.client.post(
                    "/api/labels", json={"items": [{"id": id_, "label": label} for id_, label in self.begun.items()]}
                )
                assert answer.status_code == httpx.codes.OK, answer.text
                self.acknowledged |= self.begun
                self.answers += 1
                self.begun = {}
        except httpx.TransportError:
            return
        finally:
            self.client.close()


def started(photos: Path, labels: Path, weights: Path) -> tuple[subprocess.Popen, str]:
    """Start the command, and return its process and the page's address."""
    words = [
        "label",
        photos,
        "--labels",
        labels,
        "--classes",
        ",".join(CLASSES),
        "--arch",
        "tiny5",
        "--weights",
        weights,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "penult.cli", *words, "--no-browser", "--json"], stdout=subprocess.PIPE, text=True
    )
    return process, json.loads(process.stdout.readline())["url"]


@pytest.mark.timeout(3600)
def test_killed_while_two_pages_answer(digits: Path, tiny_weights: Path, tmp_path: Path):
    """The file holds what was acknowledged to either page, is readable, and the next start continues it."""
    chance, labels, expected = random.Random(7), tmp_path / "labels.csv", {}
    acknowledged = 0
    for kill in range(KILLS):
        if len(expected) > ENOUGH:
            labels.unlink()
            expected = {}
        process, url = started(digits / "train", labels, tiny_weights)
        pages = [Page(url, 2 * kill + n) for n in range(2)]
        wanted = chance.randint(1, 40)
        while min(page.answers for page in pages) < 1 or sum(page.answers for page in pages) < wanted:
            assert all(page.is_alive() for page in pages)
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.wait()
        process.stdout.close()
        for page in pages:
            page.join()
        assert not pages[0].acknowledged.keys() & pages[1].acknowledged.keys()
        begun: dict[str, str] = {}
        for page in pages:
            expected |= page.acknowledged
            begun |= page.begun
            acknowledged += page.answers
        data = labels.read_bytes()
        whole = tmp_path / "whole.csv"
        whole.write_bytes(data[: data.rfind(b"\n") + 1])
        found = {row.image: row.label for row in tables.read_csv(whole)}
        with whole.open(newline="", encoding="utf-8") as file:
            assert {row["image"]: row["label"] for row in csv.DictReader(file, strict=True)} == found
        wrong = {id_: label for id_, label in expected.items() if found.get(id_) not in (label, begun.get(id_, label))}
        assert wrong == {}
        assert found.keys() <= expected.keys() | begun.keys()
        expected = found
    print(f"\n{KILLS} kills, {acknowledged} answers acknowledged")
