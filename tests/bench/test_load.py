"""The load that is asked for is the load that is sent, and every request is accounted for."""

import itertools
import os
import signal
import threading
import time
import urllib.request

import pytest

from penult.bench.pace import gaps
from penult.bench.settings import LoadSettings

STALL_S = 0.6
# The least that the server asks a refused client to wait.
HINT_S = 0.05


def counted(server, counter: str, *labels: str) -> float:
    """Return what a counter of the server's own metrics says for these labels."""
    lines = urllib.request.urlopen(f"{server.http}/metrics").read().decode().splitlines()
    found = [line for line in lines if line.startswith(f"{counter}{{") and all(label in line for label in labels)]
    return sum(float(line.split()[-1]) for line in found)


def answered(server, method: str) -> float:
    """Return how many requests of one method the server's own metrics count as OK."""
    return counted(server, "penult_requests_total", f'method="{method}"', 'code="OK"')


def until_answered(server, more: int) -> None:
    """Wait until the server has answered so many more requests."""
    enough = answered(server, "Classify") + more
    while answered(server, "Classify") < enough:
        time.sleep(0.02)


def test_closed_loop_sends_as_many_as_asked(measure, server):
    """--requests N measures exactly N requests: the server counts the same, the model's fingerprint is told."""
    before = answered(server, "Classify")
    report = measure(requests=40, concurrency=4, images_per_request=3)
    assert (report.requests, report.latency.requests) == (40, 40)
    assert answered(server, "Classify") - before == 40
    assert report.good_images_per_s * report.window_s == pytest.approx(120)
    assert (report.errors, report.unfinished, report.not_sent) == ({}, 0, 0)
    assert len(report.model.fingerprint) == 64


def test_warm_up_is_not_counted(measure, server):
    """What is sent during the warm-up is answered, and is in no number."""
    before = answered(server, "Classify")
    report = measure(duration_s=0.4, warmup_s=0.4, concurrency=2)
    assert answered(server, "Classify") - before > report.requests
    assert min(row.due_s for row in report.rows) >= 0
    assert report.window_s > 0.4 - 1e-6  # the difference of two clock readings is rounded


@pytest.mark.system
def test_open_loop_keeps_its_rate(measure):
    """An even schedule of 50 images/s sends one hundred requests in two seconds, at their times."""
    report = measure(rate=50.0, arrivals="uniform", duration_s=2.0)
    assert abs(report.requests - 100) <= 1
    due = [row.due_s for row in report.rows]
    steps = [after - before for before, after in itertools.pairwise(due)]
    assert max(steps) == pytest.approx(0.02, abs=1e-6)
    assert report.images_per_s == pytest.approx(50, rel=0.1)


def test_poisson_arrivals_have_the_rate_and_can_be_repeated():
    """Random gaps have the right mean and spread, count requests and not images, and are the same again."""
    settings = LoadSettings(images_per_request=4, rate=100.0)
    drawn = list(itertools.islice(gaps(settings, 100.0), 20_000))
    mean = sum(drawn) / len(drawn)
    spread = (sum((gap - mean) ** 2 for gap in drawn) / len(drawn)) ** 0.5
    assert mean == pytest.approx(0.04, rel=0.03)
    assert spread == pytest.approx(mean, rel=0.05)
    assert drawn == list(itertools.islice(gaps(settings, 100.0), 20_000))


@pytest.fixture
def stalling(models, start_server):
    """A server that stands still for STALL_S once under load: stalling() returns its target."""
    running = start_server(models)
    threads = []

    def stall() -> None:
        until_answered(running, 5)
        os.kill(running.process.pid, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.kill(running.process.pid, signal.SIGCONT)

    def arm() -> str:
        threads.append(threading.Thread(target=stall))
        threads[-1].start()
        return running.target

    yield arm
    for thread in threads:
        thread.join()
    running.process.terminate()
    running.process.wait()


@pytest.mark.system
def test_latency_counts_from_the_due_time(measure, stalling):
    """A server that stands still delays all that were due meanwhile; a closed loop would see one slow request."""
    opened = measure(target=stalling(), rate=50.0, arrivals="uniform", duration_s=1.6)
    time.sleep(0.2)
    closed = measure(target=stalling(), concurrency=1, duration_s=1.6)
    slow = [[r for r in report.rows if r.over_s - r.due_s > 0.1] for report in (opened, closed)]
    assert opened.latency.max_ms >= 1000 * STALL_S - 50
    assert len(slow[0]) >= 20
    assert len(slow[1]) <= 2
    # Those that were due later waited less: the schedule went on while nothing was answered.
    assert slow[0][0].over_s - slow[0][0].due_s > slow[0][-1].over_s - slow[0][-1].due_s + 0.3


@pytest.mark.system
@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "stream"])
def test_refusals_are_counted_by_code(measure, models, start_server, is_stream):
    """A full queue shows as RESOURCE_EXHAUSTED, apart from the answers; workers come back after the server's hint."""
    running = start_server(models, "--queue-max-images", "1")
    report = measure(
        target=running.target, concurrency=8, images_per_request=8, duration_s=1.0, is_stream=is_stream, timeout_s=5.0
    )
    # What was written just when a stream ended has no code: grpc.aio loses it.
    assert set(report.errors) <= ({"RESOURCE_EXHAUSTED", "STREAM_ENDED"} if is_stream else {"RESOURCE_EXHAUSTED"})
    assert report.errors["RESOURCE_EXHAUSTED"] > 3
    assert report.rejected.requests == sum(report.errors.values())
    assert report.latency.requests + report.rejected.requests == report.requests
    # By the server's own count, which has a stream with all that was on its way as one. Workers that came back at once
    # would be refused thousands of times a second.
    refused = counted(running, "grpc_server_handled_total", 'grpc_code="ResourceExhausted"')
    assert refused <= 8 * (1.0 / HINT_S + 1)
    assert report.rejected.requests <= refused * (report.settings.window if is_stream else 1)


def test_a_server_that_goes_away_is_an_error_and_no_hang(measure, models, start_server):
    """Requests after the server's death are UNAVAILABLE; the run ends when it should."""
    running = start_server(models)
    threading.Thread(target=lambda: (until_answered(running, 5), running.process.kill())).start()
    report = measure(target=running.target, duration_s=1.2, concurrency=2)
    assert set(report.errors) == {"UNAVAILABLE"}
    assert report.latency.requests > 0


def test_items_that_fail_are_counted_by_reason(measure, digits, tmp_path):
    """A broken file among good ones costs its own image in every request, under the server's word for it."""
    good = next((digits / "test").glob("3/*.png"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "good.PNG").write_bytes(good.read_bytes())
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "notes.txt").write_bytes(b"not sent")
    report = measure(photos=tmp_path, requests=10, images_per_request=2, concurrency=1)
    assert report.errors == {}
    assert sum(report.item_errors.values()) == 10
    assert all(reason.startswith("IMAGE_") for reason in report.item_errors)
    assert report.good_images_per_s == pytest.approx(report.images_per_s / 2)


def test_streams_describe(measure, server):
    """--stream --rpc describe answers over StreamDescribe, and counts requests as unary calls do."""
    before = answered(server, "StreamDescribe")
    report = measure(requests=30, concurrency=2, window=3, is_stream=True, rpc="describe", images_per_request=2)
    assert (report.requests, report.latency.requests, report.errors) == (30, 30, {})
    assert report.good_images_per_s * report.window_s == pytest.approx(60)
    assert answered(server, "StreamDescribe") - before == 2
    assert report.stages_ms["total_ms"] > 0


def test_raw_sends_the_models_own_size(measure):
    """--raw sends crops as large as GetModel says: height x width x 3 bytes and little more, none refused."""
    report = measure(requests=5, is_raw=True)
    pixels = report.model.crop**2 * 3
    assert pixels < report.message_bytes < pixels + 100
    assert report.item_errors == {}


def test_several_connections_share_the_load(measure):
    """--connections N answers as one connection does."""
    assert measure(requests=20, connections=3, concurrency=6).latency.requests == 20


def test_metrics_give_the_servers_cost(measure, server):
    """With the metrics page, CPU time per image and images per run of the model are there."""
    report = measure(duration_s=1.0, concurrency=4, metrics=f"{server.http}/metrics")
    assert 0 < report.server_cpu_ms_per_image < 100
    assert 1 <= report.server_batch_images <= 8
    assert 0 < report.client_cpu_ms_per_image < 20
