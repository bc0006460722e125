"""The metric names that dashboards rely on, in a registry of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from penult.bundle.baseline import Baseline, Limit
from penult.service.inference.drift import DriftMonitor
from penult.service.observability.accuracy_metrics import FAMILIES
from penult.service.observability.metrics import OTHERS, Metrics
from penult.service.observability.multiprocess import WorkersMetrics
from penult.service.observability.shadow_metrics import FAMILIES as SHADOW_FAMILIES

DOCS = Path(__file__).parents[3] / "docs/monitoring.md"
# Fixed by DESIGN.md, with their labels.
FIXED = {
    "penult_requests_total": ("model", "version", "method", "code"),
    "penult_request_seconds": ("method",),
    "penult_phase_seconds": ("phase",),
    "penult_batch_size": (),
    "penult_queue_depth": (),
    "penult_dropped_total": ("reason",),
    "penult_model_info": ("model", "version", "fingerprint", "architecture", "provider", "signed"),
    "penult_reloads_total": ("outcome",),
}


def families() -> dict[str, tuple[str, ...]]:
    """Every metric of a server with its labels."""
    ours = [m for m in vars(Metrics(CollectorRegistry())).values() if hasattr(m, "_labelnames")]
    found = {next(iter(m.describe())).name + ("_total" if m._type == "counter" else ""): m._labelnames for m in ours}
    return found | {name: labels for name, (_, labels) in (FAMILIES | SHADOW_FAMILIES).items()}


def test_the_fixed_names_exist_with_their_labels():
    """Every metric that DESIGN.md names is registered, with exactly its labels."""
    found = families()
    assert {name: found[name] for name in FIXED} == FIXED


def test_the_docs_list_every_metric_with_its_labels():
    """docs/monitoring.md has each metric, with its labels in order, and none that is not there."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|([^|]*)\|", DOCS.read_text(), re.MULTILINE)
    told = {name: tuple(re.findall(r"\w+", labels)) for names, labels in rows for name in re.findall(r"`(\w+)`", names)}
    assert told["grpc_server_handled_total"] == (*families()["grpc_server_started_total"], "grpc_code")
    elsewhere = {name for name in told if name.startswith(("penult_gpu_", "penult_front"))}
    customary = {name for name in told if name.startswith("grpc_")}
    assert len(elsewhere) == 5
    assert {name: told[name] for name in set(told) - elsewhere - customary} == {
        name: labels for name, labels in families().items() if not name.startswith("grpc_")
    }
    assert customary == {name for name in families() if name.startswith("grpc_")}


@pytest.mark.parametrize(("most", "own"), [(4, 4), (3, 2), (1, 0)])
def test_classes_beyond_the_limit_share_a_series(samples, most: int, own: int):
    """Most named on validation photos, classes have series of their own; the others' counts and shares add up."""
    shares = {"rare": 0.0, "most": 0.5, "some": 0.3, "few": 0.2}
    baseline = Baseline(
        np.eye(1, 4, dtype=np.float32), Limit(1.0, 0.0), 0.0, np.array([*shares.values()], np.float32), {}
    )
    model = SimpleNamespace(
        name="m",
        version=1,
        manifest=SimpleNamespace(classes=tuple(shares), default_scorer="svm", operating_points=()),
        baseline=baseline,
        scorers=("svm",),
    )
    metrics = Metrics(max_classes=most)
    signals = DriftMonitor(metrics, model)
    signals.record_classes("svm", [(name, 0.5) for name in shares for _ in range(3)])
    labels = ["most", "some", "few", "rare"][:own] + [OTHERS] * (own < 4)

    def told(name: str) -> dict[str, float]:
        return {dict(key[1:])["label"]: value for key, value in samples(metrics).items() if key[0] == name}

    assert told("penult_answers_total") == {label: 3 if label in shares else 3 * (4 - own) for label in labels}
    others = sum([*shares.values()]) - sum(shares[label] for label in labels if label in shares)
    expected = {label: shares.get(label, others) for label in labels}
    assert told("penult_baseline_class_share") == pytest.approx(expected, abs=1e-6)
    signals.end()
    assert told("penult_answers_total") == told("penult_baseline_class_share") == {}


def test_two_servers_of_one_process_count_apart(samples):
    """Each Metrics has a registry of its own, process metrics included."""
    one, other = Metrics(), Metrics()
    one.requests.labels("m", "1", "Classify", "OK").inc()
    labels = (("code", "OK"), ("method", "Classify"), ("model", "m"), ("version", "1"))
    assert samples(one)[("penult_requests_total", *labels)] == 1
    assert ("penult_requests_total", *labels) not in samples(other)
    assert samples(other)[("process_open_fds",)] > 0


def test_reload_outcomes_are_there_from_the_start(samples):
    """Both outcomes stand at 0 before the first reload, so that an alert on a rise sees it."""
    found = samples(Metrics())
    assert found[("penult_reloads_total", ("outcome", "loaded"))] == 0
    assert found[("penult_reloads_total", ("outcome", "refused"))] == 0


def test_counters_have_no_timestamp_series(samples):
    """No *_created series doubles the output."""
    metrics = Metrics()
    metrics.requests.labels("m", "1", "Classify", "OK").inc()
    assert not [name for name, *_ in samples(metrics) if name.endswith("_created")]


@pytest.mark.parametrize(
    ("accept", "content_type"), [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")]
)  # fmt: skip
def test_the_format_is_the_one_asked_for(accept, content_type):
    """Prometheus' text is the default, OpenMetrics is given where the scraper asks for it."""
    body, given = Metrics().exposition(accept)
    assert given.startswith(content_type)
    assert b"penult_queue_depth" in body
    assert body.endswith(b"# EOF\n") == content_type.startswith("application/openmetrics")


def test_workers_metrics_stand_without_any_worker(tmp_path, samples):
    """Before the first worker counts, and while it makes its files, a scrape tells of the supervisor alone."""
    (tmp_path / "counter_1.db").touch()
    (tmp_path / "gauge_livesum_1.db").touch()
    metrics = WorkersMetrics(tmp_path, lambda: [], lambda: 0)
    found = samples(metrics)
    assert (found["penult_fronts_ready",], found["penult_front_deaths_total",]) == (0, 0)
    assert found["process_resident_memory_bytes",] > 0
    metrics.forget(1)
    assert [path.name for path in tmp_path.iterdir()] == ["counter_1.db"]


def test_cpu_time_of_all_processes_never_falls(tmp_path, samples):
    """A process that has ended keeps its CPU time in the sum: waited for, it moves from its own to the children's."""
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        metrics = WorkersMetrics(tmp_path, lambda: [child.pid], lambda: 0)
        own = samples(Metrics())["process_cpu_seconds_total",] + sum(os.times()[2:4])
        child.stdout.readline()
        running = samples(metrics)["process_cpu_seconds_total",]
        assert running - own >= 0.4
        child.stdin.write(b"\n")
    assert samples(metrics)["process_cpu_seconds_total",] >= running
