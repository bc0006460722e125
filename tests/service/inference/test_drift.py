"""Signals about answers: novelty in every answer, and metrics that agree with what clients were told."""

import json
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.fixtures.gates import eventually

from penult import cli
from penult.bundle.baseline import Baseline, Limit
from penult.bundle.errors import BundleError
from penult.bundle.manifest import BASELINE_NAME, FileEntry, Manifest
from penult.bundle.reader import read_bundle, read_manifest
from penult.bundle.scores import wilson
from penult.client import Client, Neighbours, NewItem

MODEL = (("model", "digits"), ("version", "1"))
_Z99 = 2.576  # two-sided, of the normal distribution


@pytest.fixture(scope="module")
def running(models, start_server, tmp_path_factory):
    """A server of digits."""
    return start_server(models, "--http", "--lookup", str(tmp_path_factory.mktemp("lookup")))


@pytest.fixture
def client(running):
    """A client of it."""
    with Client(running.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def own_photos(digits):
    """Test photos of the digits, 20 of each."""
    return [path for digit in "0123456789" for path in sorted((digits / "test" / digit).iterdir())[:20]]


def noise(count: int) -> list[np.ndarray]:
    """Photos of nothing."""
    return list(np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def rise(samples, running, act) -> dict[tuple, float]:
    """What every metric gained while something was done."""
    before = samples(running.http)
    act()
    return {key: value - before.get(key, 0) for key, value in samples(running.http).items()}


def test_noise_is_novel_and_test_photos_are_as_stated(client, models, own_photos):
    """Nearly all noise lies above the threshold, and as many test photos as the bundle says; all numbers are answered."""
    answer, strange = client.classify(own_photos), client.classify(noise(50))
    assert answer.novelty_threshold == strange.novelty_threshold > 0
    for result in (*answer.results, *strange.results):
        assert result.is_novel == (result.novelty > answer.novelty_threshold)
    stated = read_bundle(models / "digits").baseline.limit
    share = sum(result.is_novel for result in answer.results) / len(own_photos)
    assert wilson(share, len(own_photos), z=_Z99)[0] <= stated.interval[1] < 0.06
    assert sum(result.is_novel for result in strange.results) >= 45


def test_novelty_is_what_the_main_directions_leave_over(client, models, own_photos):
    """The served number is the length of the unit descriptor's rest outside baseline.npz's subspace, for every scorer."""
    residual = read_bundle(models / "digits").baseline.residual
    photos = [*own_photos[:5], *noise(3)]
    units = np.stack(client.describe(photos).results).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    outside = np.eye(len(residual.mean)) - residual.directions @ residual.directions.T
    expected = np.linalg.norm((units - residual.mean) @ outside, axis=1)
    for scorer in ("dense", "svm"):
        found = [result.novelty for result in client.classify(photos, scorer=scorer).results]
        assert found == pytest.approx(expected, abs=1e-5)


def test_metrics_count_what_clients_were_told(client, running, samples, own_photos):
    """Classes, probabilities and novelties of 200 + 20 photos, by two scorers, add up to the metrics' rises."""
    photos = [*own_photos, *noise(20)]
    answers = []
    gained = rise(samples, running, lambda: answers.extend(client.classify(photos, scorer=s) for s in ("dense", "svm")))
    named = Counter(result.label for answer in answers for result in answer.results)
    for label in "0123456789":
        assert gained["penult_answers_total", ("label", label), *MODEL] == named[label]
    for answer in answers:
        key = (MODEL[0], ("scorer", answer.scorer), MODEL[1])
        assert gained["penult_confidence_count", *key] == len(photos)
        told = sum(result.probability for result in answer.results)
        assert gained["penult_confidence_sum", *key] == pytest.approx(told, rel=1e-5)
    results = [result for answer in answers for result in answer.results]
    assert gained["penult_novel_total", *MODEL] == sum(result.is_novel for result in results)
    assert gained["penult_novelty_ratio_count", *MODEL] == len(results)
    told = sum(result.novelty for result in results) / answers[0].novelty_threshold
    assert gained["penult_novelty_ratio_sum", *MODEL] == pytest.approx(told, rel=1e-5)


def test_every_door_counts(client, running, samples, own_photos):
    """Describe, Lookup and the Open Inference Protocol count novelty; the latter counts its labels, too."""
    crops = np.stack(noise(3))
    body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(crops.shape), "data": crops.ravel().tolist()}],
            "outputs": [{"name": "labels"}]}  # fmt: skip
    gained = rise(samples, running, lambda: client.describe(own_photos[:4]))
    assert gained["penult_novelty_ratio_count", *MODEL] == 4
    gained = rise(
        samples, running, lambda: httpx.post(f"{running.http}/v2/models/digits/infer", json=body).raise_for_status()
    )
    assert gained["penult_novelty_ratio_count", *MODEL] == 3
    assert sum(v for (name, *_), v in gained.items() if name == "penult_answers_total") == 3


def test_neighbours_distances_are_counted(client, running, samples, own_photos):
    """Of photos looked up, the distance to the nearest item counts, and how many were found."""
    client.put_items("near", [NewItem(path.name, path) for path in own_photos[::2]])
    answers = []
    gained = rise(
        samples, running,
        lambda: answers.append(client.classify(own_photos[:10], neighbours=Neighbours("near", k=3))),
    )  # fmt: skip
    nearest = [1 - result.neighbours[0].similarity for result in answers[0].results]
    assert gained["penult_neighbour_distance_count", *MODEL] == 10
    assert gained["penult_neighbour_distance_sum", *MODEL] == pytest.approx(sum(nearest), abs=1e-4)
    assert gained["penult_lookup_results_sum",] == 30
    assert gained["penult_lookup_seconds_count", ("operation", "search")] == 1
    deadline = time.monotonic() + 120  # counted every 15 seconds
    while samples(running.http)["penult_lookup_items",] != 100:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert samples(running.http)["penult_lookup_collections",] == 1


def test_the_baseline_is_stated(running, samples, models, trained):
    """The gauges are what baseline.npz holds, and that is what the validation photos showed."""
    found, baseline = samples(running.http), read_bundle(models / "digits").baseline
    shares = [found["penult_baseline_class_share", ("label", label), *MODEL] for label in "0123456789"]
    assert shares == pytest.approx(baseline.class_share.tolist())
    assert sum(shares) == pytest.approx(1)
    for scorer in ("dense", "svm"):
        told = trained.metrics["val"][scorer]["mean_confidence"]
        assert found["penult_baseline_confidence", MODEL[0], ("scorer", scorer), MODEL[1]] == pytest.approx(told)
    assert found["penult_baseline_novel_share", *MODEL] <= 0.03
    assert 0 < found["penult_baseline_neighbour_distance", *MODEL] < baseline.nearest.threshold
    assert found["penult_baseline_photos", *MODEL] == baseline.photos == trained.metrics["val"]["dense"]["photos"]


def test_the_command_line_marks_what_is_novel(running, tmp_path, own_photos, capsys):
    """The table says (novel), JSON has both fields."""
    strange = tmp_path / "strange.png"
    Image.fromarray(noise(1)[0]).save(strange)
    photos = [str(own_photos[0]), str(strange)]
    assert cli.main(["classify", *photos, "--target", running.target]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["(novel)" in line for line in lines[1:3]] == [False, True]
    near, far = (float(line.split("%")[1].split()[0]) for line in lines[1:3])
    assert near <= 1 < far
    assert lines[-1].startswith("distance: to the training photos; above 1")
    assert cli.main(["classify", *photos, "--target", running.target, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["results"]
    assert [each["is_novel"] for each in told] == [False, True]
    assert told[0]["novelty"] < told[1]["novelty"]


def test_a_bundle_without_a_baseline_is_served(start_server, publish_brightness, tmp_path, encode, samples):
    """A bundle of before answers as before: no novelty, no baseline, but classes are counted."""
    publish_brightness(tmp_path / "models")
    server = start_server(tmp_path / "models")
    with Client(server.target) as client:
        answer = client.classify([encode(20)])
    assert (answer.novelty_threshold, answer.results[0].novelty, answer.results[0].is_novel) == (None, None, False)
    found = samples(server.http)
    assert found["penult_answers_total", ("label", "dark"), ("model", "light"), ("version", "1")] == 1
    assert not [key for key in found if "baseline" in key[0] or "novel" in key[0]]


def test_a_new_version_counts_anew(copy_model, start_server, tmp_path, digits, own_photos, samples):
    """After a reload the series are those of the new version; those of the old one are gone with it."""
    folder = copy_model(tmp_path / "models")
    server = start_server(tmp_path / "models", "--watch-s", "0.2")
    with Client(server.target) as client:
        client.classify(own_photos[:10])
        assert cli.main(["svm", str(folder), str(digits)]) == 0
        deadline = time.monotonic() + 120
        while client.classify(own_photos[:1]).version == 1:
            assert time.monotonic() < deadline

    def versions() -> set[str]:
        return {
            dict(labels)["version"]
            for name, *labels in samples(server.http)
            if name.startswith(("penult_answers", "penult_conf", "penult_nov", "penult_base", "penult_neigh"))
        }

    eventually(lambda: versions() == {"2"})


def test_lookups_do_not_notice_that_versions_change(copy_model, start_server, tmp_path, own_photos, samples):
    """While ten versions come and go, not one of the photos looked up meets an error."""
    folder = copy_model(tmp_path / "models")
    server = start_server(tmp_path / "models", "--watch-s", "0.05", "--lookup", str(tmp_path / "lookup"))
    stop, failed, answered = threading.Event(), [], [0]
    with Client(server.target) as client:
        client.put_items("near", [NewItem(path.name, path) for path in own_photos])

    def ask() -> None:
        with Client(server.target, retries=0) as client:
            while not stop.is_set():
                try:
                    client.classify(own_photos[:2], neighbours=Neighbours("near", k=200))
                    client.lookup(own_photos[:2], "near", k=200)
                    answered[0] += 2
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Client(server.target) as client:
        for version in range(2, 12):
            scratch = shutil.copytree(folder / "1", tmp_path / "new")
            scratch.rename(folder / str(version))
            while client.get_model().version.version != version:
                time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert answered[0] > 50


def test_a_wrong_baseline_is_refused(copy_model, tmp_path):
    """A baseline of another model, put in with its digest made right, is no baseline of this one."""
    folder = copy_model(tmp_path / "models")
    manifest: Manifest = read_manifest(folder / "1")
    other = Baseline(np.eye(4, dtype=np.float32), Limit(0.1, 0), 0.1, np.full(10, 0.1, np.float32), {}).to_bytes()
    (folder / "1" / BASELINE_NAME).write_bytes(other)
    files = dict(manifest.files) | {BASELINE_NAME: FileEntry.of(other)}
    (folder / "1" / "manifest.json").write_bytes(replace(manifest, files=files).to_json())
    with pytest.raises(BundleError, match=r"baseline\.npz cannot be right"):
        read_bundle(folder)
