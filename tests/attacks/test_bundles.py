"""Hundreds of bad bundles, offered one after another to a server at work: none is served, run, or noticed by a client."""

import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.attacks import contents, good_bundle, mutations, pickles

from penult.client import Client

FULL = os.environ.get("PENULT_FULL") == "1"
SAMPLE = 60
SEED = 20261126
# Of a bad bundle, the server may know no more than these reasons; INTERNAL would be a crash of its own.
REASONS = re.compile(r"(MANIFEST|FILE|SVM|MODEL|GOLDEN|BASELINE)_[A-Z]{2,20}")
# Above what it was before; onnxruntime and Python keep some of what they had.
MAX_GROWTH_BYTES = 500 << 20


class Attacked:
    """A server with a good version 1, whose folder gets bad versions one by one."""

    def __init__(self, server, root: Path, scratch: Path, good: Path) -> None:
        """Watch this server, and copy mutants from this bundle."""
        self.server, self._folder, self._scratch, self._good = server, root / "light", scratch, good
        self.number = 1
        self.http = httpx.Client(base_url=server.http)

    def offer(self, spoil: Callable[[Path], object] = lambda folder: None) -> str:
        """Publish a copy of the good bundle, spoilt; return the reason of the refusal, "" where it was loaded."""
        self.number += 1
        staged = shutil.copytree(self._good, self._scratch / str(self.number))
        spoil(staged)
        staged.rename(self._folder / str(self.number))
        return self._outcome()

    def offer_link(self, target: Path) -> str:
        """Publish a link to a folder in a version's place."""
        self.number += 1
        (self._folder / str(self.number)).symlink_to(target)
        return self._outcome()

    def _outcome(self) -> str:
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                assert self.server.process.poll() is None, "the server has ended"
                for event in self.http.get("/status.json").json()["events"]:
                    if event["version"] == self.number and event["outcome"] in ("loaded", "refused"):
                        found = re.search(r"\(([A-Z_0-9]+)\)$", event["reason"])
                        return found.group(1) if found else ""
                time.sleep(0.01)
            raise AssertionError("neither loaded nor refused in time")
        finally:
            self._remove(self._folder / str(self.number))

    def _remove(self, folder: Path) -> None:
        """Take a version away in one step: half of it would be another bad bundle, and refused anew."""
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder.rename(self._scratch / f"{folder.name}-removed"))

    def reloads(self) -> dict[str, float]:
        """Return penult_reloads_total by outcome."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return {
            sample.labels["outcome"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "penult_reloads_total"
        }

    def memory_bytes(self, what: str) -> int:
        """Return VmRSS or VmHWM of the server."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status).group(1)) << 10


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> mutations.Parts:
    """Three good bundles, and a folder outside the repository with secrets, where the server works."""
    root, outside = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("outside")
    (outside / "canaries").mkdir()
    (outside / "secret.bin").write_bytes(b"the server's own secret" * 20)
    made = [good_bundle.make(root / name, kernel, seed)
            for name, kernel, seed in (("a", "rbf", 0), ("b", "linear", 0), ("c", "rbf", 1))]  # fmt: skip
    return mutations.Parts(*made, outside)


@pytest.fixture(scope="session")
def mutants(parts) -> list[mutations.Mutant]:
    """All mutants with PENULT_FULL=1; else a part of every kind."""
    rng = np.random.default_rng(SEED)
    by_kind = {
        kind.__name__: [mutations.Mutant(kind.__name__, name, spoil) for name, spoil in kind(parts, rng)]
        for kind in (*mutations.KINDS, *contents.KINDS)
    }
    if FULL:
        return [mutant for mutants in by_kind.values() for mutant in mutants]
    share = SAMPLE / sum(map(len, by_kind.values()))
    chosen: list[mutations.Mutant] = []
    for mutants in by_kind.values():
        places = rng.permutation(len(mutants))[: max(2, round(share * len(mutants)))]
        chosen += [mutants[place] for place in sorted(places)]
    return chosen


@pytest.fixture
def attacked(parts, start_server, tmp_path, monkeypatch) -> Iterator[Attacked]:
    """A server that looks for new versions twenty times a second, in a working folder that holds secrets."""
    good_bundle.make(tmp_path / "models")
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(parts.outside)
    server = start_server(tmp_path / "models", "--watch-s", "0.05", "--http", "--lookup", "off")
    found = Attacked(server, tmp_path / "models", tmp_path / "scratch", parts.rbf.folder)
    yield found
    found.http.close()
    server.process.terminate()
    assert server.process.wait(30) == 0


@pytest.fixture
def asking(attacked, parts) -> Iterator[list[object]]:
    """Ask on and on from a thread; the versions that answered, and every failure."""
    said: list[object] = []
    is_over = threading.Event()

    def ask() -> None:
        photo = parts.rbf.goldens.images[0]
        with Client(attacked.server.target) as client:
            while not is_over.is_set():
                try:
                    answer = client.classify([photo])
                    said.append((answer.version, answer.results[0].label))
                except Exception as error:
                    said.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    yield said
    is_over.set()
    thread.join(30)


@pytest.mark.timeout(3600)
def test_no_mutant_is_served(attacked, asking, mutants, parts):
    """Each mutant is refused for a stable reason; none runs anything, and version 1 answers every request meanwhile."""
    before = attacked.memory_bytes("VmRSS")
    with suppress(OSError):  # without that right, the peak includes the start, and the bound is only stricter
        Path(f"/proc/{attacked.server.process.pid}/clear_refs").write_text("5")
    outcomes = [(mutant, attacked.offer(mutant.spoil)) for mutant in mutants]
    growth = attacked.memory_bytes("VmHWM") - before
    strange = [(m.kind, m.name, reason or "LOADED") for m, reason in outcomes if not REASONS.fullmatch(reason)]
    print(f"\n{len(outcomes)} mutants, {len(asking)} answers meanwhile, peak growth {growth >> 20} MiB")
    for reason in sorted({reason for _, reason in outcomes}):
        print(f"  {reason}: {sum(found == reason for _, found in outcomes)}")
    assert strange == []
    assert list((parts.outside / "canaries").iterdir()) == []
    assert len(asking) > len(mutants)
    assert set(asking) == {(1, asking[0][1])}
    assert attacked.reloads() == {"loaded": 1.0, "refused": float(len(mutants)), "retired": 0.0}
    assert growth < MAX_GROWTH_BYTES


def test_a_good_bundle_is_served_after_bad_ones(attacked, parts):
    """What follows bad bundles is not harmed by them: good ones with either SVM are loaded, also from sealed parts."""
    for name in ("state of a class", "the same 1 MB 5,000 times", "tuples hashed 9 thousand deep"):
        spoil = mutations.sealed("svm.pkl", pickles.CRAFTED[name])
        assert attacked.offer(spoil).startswith("SVM_")
    goldens, svm = parts.linear.goldens.to_bytes(), parts.linear.pickled()
    assert attacked.offer() == ""
    assert attacked.offer(lambda folder: mutations.seal(folder, svm_pkl=svm, golden_npz=goldens)) == ""


def test_clients_learn_nothing_of_the_server(attacked, mutants, parts, tmp_path):
    """What clients can ask for, the index and an error for a refused version, holds no path and no secret."""
    seen = []
    for mutant in mutants[:: max(1, len(mutants) // 12)]:
        number = attacked.number + 1
        watching = threading.Thread(target=lambda: seen.append(attacked.http.post("/v2/repository/index").text))
        watching.start()
        attacked.offer(mutant.spoil)
        watching.join()
        seen.append(attacked.http.post("/v2/repository/index").text)
        with Client(attacked.server.target) as client, pytest.raises(Exception) as caught:
            client.classify([parts.rbf.goldens.images[0]], version=number)
        seen.append(str(caught.value))
    assert seen
    for text in seen:
        assert not any(path in text for path in (str(tmp_path), str(parts.outside), "secret", "site-packages")), text


def test_every_evil_pickle_is_alive(parts, tmp_path):
    """Each of the evil pickles does run its command where Python's own unpickler reads it."""
    canary, dead = tmp_path / "canary", []
    for name, data in pickles.evil(parts.rbf.pipeline, canary):
        try:
            opened = pickle.loads(data)
            del opened
        except Exception:
            assert canary.exists(), name
        if not canary.exists():
            dead.append(name)
        canary.unlink(missing_ok=True)
    assert dead == []


def test_a_linked_version_is_checked_like_any_other(attacked, parts, tmp_path):
    """A version folder that is a link to a bad bundle is refused, and leads nowhere else."""
    bad = shutil.copytree(parts.rbf.folder, tmp_path / "bad")
    mutations.seal(bad, svm_pkl=b"garbage")
    assert attacked.offer_link(bad) == "SVM_INVALID"
