"""--tune: the rule that chooses, what is tried, and a file that `penult serve --config` takes."""

import io
import json
import tomllib
from dataclasses import fields

import pytest
from PIL import Image

from penult.bench.settings import LoadSettings
from penult.bench.trials import Trial, choose, groups, mean
from penult.service.config import ServeConfig


def trial(number: int, images_per_s: float, p99_ms: float, is_clean: bool = True) -> Trial:
    return Trial({"threads": number}, images_per_s, p99_ms / 2, p99_ms, 5.0, 2.0, is_clean)


TRIALS = [trial(0, 100, 50), trial(1, 102, 49), trial(2, 140, 70), trial(3, 200, 90), trial(4, 999, 40, is_clean=False)]


@pytest.mark.parametrize(("goal", "number"), [("balanced", 2), ("throughput", 3), ("latency", 0)])
def test_each_goal_has_its_rule(goal, number):
    """Fastest within 1.5x of the best p99; fastest; lowest p99. Failures are out, and noise keeps what came first."""
    assert choose(TRIALS, goal) is TRIALS[number]


def test_where_all_fail_one_is_still_chosen():
    """A load that no setting answers in full still has a best."""
    assert choose([TRIALS[-1]], "balanced") is TRIALS[-1]


def test_repeated_trials_are_averaged():
    """Two trials of one setting become their mean, and are clean if both are."""
    both = mean(trial(1, 100, 50), trial(1, 200, 70, is_clean=False))
    assert (both.images_per_s, both.p99_ms, both.is_clean) == (150, 60, False)


def test_only_settings_that_serve_has_are_tried():
    """Every name in the grid is a field of ServeConfig, and no batch is larger than the load can fill."""
    names = {f.name for f in fields(ServeConfig)}
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        found = groups(provider, 4, 16)
        assert {name for group in found for name in group} <= names
        assert max(n for group in found for n in group.get("batch_max_images", [0])) == 16
    assert not any("batch_max_images" in group for group in groups("CUDAExecutionProvider", 4, 4))


@pytest.mark.system
def test_tune_writes_what_serve_takes(penult, models, start_server, tmp_path):
    """A small tuning ends with a file whose other lines stayed and that a server starts from, and with a picture."""
    config, out = tmp_path / "penult.toml", tmp_path / "out"
    config.write_text("# ours\nthreads = 1  # for now\nqueue_max_images = 64\n")
    code, printed, err = penult(
        "--tune", "--models", models, "--device", "cpu", "--config", config, "--out", out, "--json", "--raw",
        "--concurrency", "1", "--duration", "0.4", "--warmup", "0.1", "--goal", "throughput",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(printed)
    assert json.loads((out / "tune.json").read_text()).keys() == answer.keys()
    written = tomllib.loads(config.read_text())
    assert written == {"threads": 1, "queue_max_images": 64} | answer["chosen"]
    assert "# ours" in config.read_text()
    assert "# for now" in config.read_text()
    tried = [entry["values"] for entry in answer["trials"]]
    assert tried[0] == {}
    assert {"batch_max_images": 1} in [{k: v for k, v in t.items() if k == "batch_max_images"} for t in tried]
    assert "minutes; Ctrl-C stops" in err
    assert Image.open(io.BytesIO((out / "tune.png").read_bytes())).format == "PNG"
    assert start_server(models, "--config", str(config)).target


@pytest.mark.server
def test_a_server_that_does_not_start_is_one_line(penult, tmp_path):
    """The server's own reason is passed on."""
    code, _, err = penult("--tune", "--models", tmp_path / "nothing", "--raw")
    assert code == 1
    assert err.splitlines()[-1].startswith("penult: penult serve did not start: ")


def test_many_requests_on_their_way_are_the_tuning_load():
    """The load's requests on their way: workers, times the window where they stream, unknown in the open loop."""
    assert LoadSettings(concurrency=4).in_flight == 4
    assert LoadSettings(concurrency=4, is_stream=True, window=3).in_flight == 12
    assert LoadSettings(rate=5.0).in_flight is None
