"""Several workers behind one port look like one server: one ready line, one set of metrics, one drain, nothing left."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.multiprocess import MultiProcessCollector

from penult.client import Client
from penult.v1 import penult_pb2_grpc

CONNECTIONS = 32
# Requests wait for so many milliseconds, without using the processor.
WAITING = ("--threads", "8", "--cpu-mode", "throughput", "--batch-max-images", "16", "--batch-delay-ms")
OK = (("code", "OK"), ("method", "Classify"), ("model", "light"), ("version", "1"))
REQUESTS = ("penult_requests_total", *OK)
DEATHS, READY_WORKERS, CPU = ("penult_front_deaths_total",), ("penult_fronts_ready",), ("process_cpu_seconds_total",)


@pytest.fixture(scope="module")
def shared(quick, start_server):
    """Two workers that several tests ask, and leave running."""
    return start_server(quick, "--workers", "2")


@pytest.fixture
def stub_of(connect):
    """The methods of a server, over a connection of their own."""
    return lambda target: penult_pb2_grpc.PenultServiceStub(connect(target))


def wait_for(condition, seconds: float = 120) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def pids(running) -> list[int]:
    """The process of each worker, by number."""
    found = dict(re.findall(r"worker (\d+) is ready, process (\d+)", running.log.read_text()))
    return [int(pid) for _, pid in sorted(found.items())]


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def metrics_folder(pid: int) -> Path:
    """Where a worker counts."""
    variables = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v)
    return Path(variables["PROMETHEUS_MULTIPROC_DIR"])


def answered_by(pid: int) -> float:
    """How many Classify requests one worker has answered."""
    files = [str(path) for path in metrics_folder(pid).glob(f"counter_{pid}.db")]
    samples = [sample for metric in MultiProcessCollector.merge(files) for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == REQUESTS[0])


def answers(address: str) -> bool:
    """Whether a page is there."""
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def serve(models: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run workers that are expected to give up."""
    return subprocess.run(
        [sys.executable, "-m", "penult.cli", "serve", "--models", str(models), "--port", "0", "--metrics-port", "0",
         "--workers", "2", "--log-level", "error", *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_every_connection_is_answered_alike_and_every_worker_has_some(shared, samples, stub_of, request_of, encode):
    """Of 32 connections each worker gets some, all answers are equal, and the metrics are the sum over the workers."""
    before, by_worker = samples(shared.http), [answered_by(pid) for pid in pids(shared)]
    request = request_of(encode(230), encode(20), top_k=2)
    answers = [stub_of(shared.target).Classify(request, wait_for_ready=True, timeout=120) for _ in range(CONNECTIONS)]
    assert len({tuple(r.classification.SerializeToString() for r in answer.results) for answer in answers}) == 1
    assert [r.classification.label for r in answers[0].results] == ["bright", "dark"]
    wait_for(lambda: samples(shared.http)[REQUESTS] - before.get(REQUESTS, 0) == CONNECTIONS)
    after = samples(shared.http)
    by_worker = [answered_by(pid) - count for pid, count in zip(pids(shared), by_worker, strict=True)]
    assert min(by_worker) > 0
    assert sum(by_worker) == CONNECTIONS
    assert after["penult_batch_size_sum",] - before["penult_batch_size_sum",] == 2 * CONNECTIONS
    rise = after["penult_request_seconds_count", ("method", "Classify")]
    assert rise - before.get(("penult_request_seconds_count", ("method", "Classify")), 0) == CONNECTIONS


def test_the_metrics_look_like_one_server(shared, samples):
    """The names and labels of one server, with no process's number in them; memory and CPU time of all together."""
    found = samples(shared.http)
    assert [value for (name, *_), value in found.items() if name == "penult_model_info"] == [1]
    assert found["penult_queue_depth",] == 0
    assert found["penult_reloads_total", ("outcome", "loaded")] == 2
    assert (found[READY_WORKERS], found[DEATHS]) == (2, 0)
    assert not [labels for _, *labels in found if "pid" in dict(labels)]
    assert found["process_resident_memory_bytes",] > 3 * 20e6
    assert found["process_open_fds",] > 30
    assert samples(shared.http)[CPU] >= found[CPU] > 1
    openmetrics = httpx.get(f"{shared.http}/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")


def test_it_is_ready_and_alive(shared, connect):
    """Both probes are well, the health of a worker is SERVING, and every worker logs under its number."""
    assert [httpx.get(f"{shared.http}/{path}").status_code for path in ("readyz", "livez")] == [200, 200]
    health = health_pb2_grpc.HealthStub(connect(shared.target))
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert re.fullmatch(r"127\.0\.0\.1:\d+", shared.target)
    assert len(re.findall("^worker 2: .* INFO .* loaded light", shared.log.read_text(), re.MULTILINE)) == 1


@pytest.mark.parametrize("options", [(), ("--workers", "1")], ids=["workers", "alone"])
def test_the_port_of_workers_is_in_use(shared, quick, options):
    """Neither other workers nor a server alone come onto the port of running workers."""
    result = serve(quick, "--port", shared.target.rpartition(":")[2], *options)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "another penult server has it" in line


def test_the_port_of_another_program_is_in_use(shared, quick):
    """A port that another program listens on, shared or not, is refused, and so is a taken HTTP port."""
    for option in (None, socket.SO_REUSEPORT):
        with socket.socket() as taken:
            if option:
                taken.setsockopt(socket.SOL_SOCKET, option, 1)
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            result = serve(quick, "--port", str(taken.getsockname()[1]))
            assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    result = serve(quick, "--metrics-port", shared.http.rpartition(":")[2])
    assert result.returncode == 1
    assert "--metrics-port" in result.stderr


def test_counters_stay_whole_when_a_worker_dies(quick, start_server, samples, stub_of, request_of, encode):
    """After kill -9 the other worker serves on, a new one comes, and no counter has fallen."""
    running = start_server(quick, "--workers", "2")
    request, first = request_of(encode(230)), pids(running)
    for _ in range(CONNECTIONS):
        stub_of(running.target).Classify(request, wait_for_ready=True, timeout=120)
    wait_for(lambda: samples(running.http)[REQUESTS] == CONNECTIONS)
    before = samples(running.http)
    os.kill(first[0], signal.SIGKILL)
    wait_for(lambda: samples(running.http)[DEATHS] == 1)
    alone = samples(running.http)
    assert alone[READY_WORKERS] == 1
    assert alone[REQUESTS] == CONNECTIONS
    assert httpx.get(f"{running.http}/readyz").status_code == 200
    for _ in range(8):  # while the new one loads, it takes no connections that it could not answer
        stub_of(running.target).Classify(request, timeout=120)
    wait_for(lambda: samples(running.http)[READY_WORKERS] == 2)
    assert first[0] not in pids(running)
    after = samples(running.http)
    assert after[REQUESTS] == CONNECTIONS + 8
    assert after["penult_reloads_total", ("outcome", "loaded")] == 3
    # Gauges may fall; the estimate leaves out the answers of the killed worker.
    falling = ("penult_queue_depth", "penult_model_info", "process_", "penult_fronts", "penult_estimated_accuracy")
    assert [key for key in before if not key[0].startswith(falling) and after[key] < before[key]] == []
    assert after[CPU] >= alone[CPU] >= before[CPU]
    assert "worker 1 ended unasked (1 of 4): SIGKILL" in running.log.read_text()


def test_a_crash_of_native_code_costs_nobody_an_answer(quick, start_server, samples, encode):
    """A worker that dies as a decoder would kill it, by SIGSEGV under load, costs only its own requests, which are asked
    again by penult's clients: all photos are answered.
    """  # fmt: skip
    running = start_server(quick, "--workers", "2")
    photo, answered, stopped = encode(230), [], threading.Event()

    def ask() -> None:
        while not stopped.is_set():  # each time over a connection of its own, so that both workers have some
            with Client(running.target, 20) as client:
                answered.extend(client.classify([photo]).results[0].label for _ in range(5))

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(4)]
        wait_for(lambda: len(answered) > 40)
        os.kill(pids(running)[0], signal.SIGSEGV)
        wait_for(lambda: samples(running.http)[DEATHS] == 1)
        before = len(answered)
        wait_for(lambda: samples(running.http)[READY_WORKERS] == 2 and len(answered) > before + 40)
        stopped.set()
        for each in asking:
            each.result(30)
    assert set(answered) == {"bright"}
    assert "worker 1 ended unasked (1 of 4): SIGSEGV" in running.log.read_text()


def test_a_worker_that_hangs_is_replaced(quick, start_server, samples):
    """A worker whose event loop stands still is ended and started again: a probe of the supervisor cannot see it."""
    running = start_server(quick, "--workers", "2")
    stuck = pids(running)[1]
    os.kill(stuck, signal.SIGSTOP)
    wait_for(lambda: not is_running(stuck))
    wait_for(lambda: samples(running.http)[READY_WORKERS] == 2)
    assert "worker 2 hangs" in running.log.read_text()


@pytest.mark.parametrize("everyone", [False, True], ids=["supervisor", "everyone"])
def test_a_signal_drains_all_workers(quick, start_server, samples, stub_of, request_of, encode, everyone):
    """At SIGTERM, also to every process, readiness goes, what was accepted is answered, and all leave with 0; one ready line was all."""
    running = start_server(quick, "--workers", "2", "--drain-lead", "1", *WAITING, "2000")
    workers, codes = pids(running), Counter()
    folder = metrics_folder(workers[0])
    ask = [stub_of(running.target) for _ in range(8)]
    calls = [stub.Classify.future(request_of(encode(230)), timeout=120) for stub in ask]
    wait_for(lambda: samples(running.http)["penult_queue_depth",] == len(ask))
    for pid in [running.process.pid, *(workers if everyone else ())]:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: httpx.get(f"{running.http}/readyz").status_code == 503)
    assert httpx.get(f"{running.http}/livez").status_code == 200
    for call in calls:
        codes[call.code()] += 1
    assert codes == {grpc.StatusCode.OK: len(ask)}
    assert running.process.wait(120) == 0
    assert running.process.stdout.read() == ""
    assert not [pid for pid in workers if is_running(pid)]
    assert not folder.exists()
    log = running.log.read_text()
    assert log.splitlines()[-1].endswith("stopped")
    assert "unasked" not in log


def test_a_second_signal_ends_all_at_once(quick, start_server):
    """Who asks twice does not wait: exit code 1, no worker left."""
    running = start_server(quick, "--workers", "2", "--drain-lead", "60")
    workers = pids(running)
    running.process.send_signal(signal.SIGINT)
    wait_for(lambda: "draining" in running.log.read_text())
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(120) == 1
    wait_for(lambda: not [pid for pid in workers if is_running(pid)])


def test_workers_do_not_outlive_their_supervisor(quick, start_server, samples, stub_of, request_of, encode):
    """Kill -9 of the supervisor ends the workers, busy ones too, frees the port and leaves no folder behind."""
    running = start_server(quick, "--workers", "2", "--drain-lead", "60", *WAITING, "60000")
    workers = pids(running)
    folder = metrics_folder(workers[0])
    calls = [stub_of(running.target).Classify.future(request_of(encode(20)), timeout=90) for _ in range(8)]
    wait_for(lambda: samples(running.http)["penult_queue_depth",] == len(calls))
    running.process.kill()
    wait_for(lambda: not [pid for pid in workers if is_running(pid)])
    assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    assert not folder.exists()
    # A process counts as ended when its first thread has; the last of the others lets go of the port.
    wait_for(lambda: is_free(int(running.target.rpartition(":")[2])))


def is_free(port: int) -> bool:
    """Whether somebody else can have a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _damage(models: Path) -> None:
    with (models / "light" / "1" / "model.onnx").open("ab") as file:
        file.write(b"x")


@pytest.mark.server
def test_workers_that_cannot_start_are_one_reason(quick, tmp_path):
    """A damaged bundle ends the start with exit code 1; the last line is the reason, told once."""
    models = shutil.copytree(quick, tmp_path / "models")
    _damage(models)
    result = serve(models)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("penult: no model in ")
    assert result.stderr.count("penult: ") == 1
    assert "FILE_DIGEST" in result.stderr


def test_a_worker_that_keeps_dying_ends_the_service(quick, tmp_path, start_server):
    """A worker that cannot be started again is tried a few times; then the others drain and the exit code is 1."""
    models = shutil.copytree(quick, tmp_path / "models")
    running = start_server(models, "--workers", "2")
    workers = pids(running)
    _damage(models)
    os.kill(workers[0], signal.SIGKILL)
    assert running.process.wait(120) == 1
    assert running.log.read_text().splitlines()[-1].startswith("penult: worker 1 ended 4 times in a row: no model in ")
    assert not [pid for pid in workers if is_running(pid)]


def test_a_signal_while_starting_ends_it(quick, launch):
    """SIGTERM before the workers are ready ends them all with exit code 0 and without a ready line."""
    starting = launch(quick, "--workers", "2")
    wait_for(lambda: answers(f"{starting.http}/livez"))
    assert httpx.get(f"{starting.http}/readyz").status_code == 503
    starting.process.send_signal(signal.SIGTERM)
    assert starting.process.wait(120) == 0
    assert starting.process.stdout.read() == ""


def test_under_load_no_accepted_request_is_lost(quick, start_server, stub_of, request_of, encode, ask_until_refused):
    """Clients that ask without pause through SIGTERM see only OK until the workers stop accepting."""
    running, request = start_server(quick, "--workers", "2", "--drain-lead", "1"), request_of(encode(230))
    asked = []

    def asker():
        stub = stub_of(running.target)
        return lambda: stub.Classify.future(request, timeout=120).code()

    def stop() -> None:
        asked.append(time.monotonic())
        running.process.send_signal(signal.SIGTERM)

    outcomes = ask_until_refused(asker, stop)
    assert running.process.wait(120) == 0
    lost = [(when, code) for when, code in outcomes if code is not grpc.StatusCode.OK]
    assert {code for _, code in lost} == {grpc.StatusCode.UNAVAILABLE}
    assert min(when for when, _ in lost) - asked[0] > 0.9
