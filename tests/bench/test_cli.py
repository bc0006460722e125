"""`penult bench` on the command line: tables, JSON, files, one line per error, Ctrl-C."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from tests.fixtures.gates import eventually

from penult.bench.settings import BenchError, settings_of
from penult.cli.bench import add_arguments
from penult.client.credentials import NONE

QUICK = ("--duration", "0.5", "--warmup", "0.1")


def test_people_get_the_numbers(penult, server):
    """Throughput, latency percentiles and CPU cost are on standard output, with the load they belong to."""
    code, out, err = penult("--target", server.target, *QUICK, "--raw", "--concurrency", "3")
    assert (code, err) == (0, "")
    for word in ("images/s", "p50", "p99.9", "closed loop, 3 requests", "CPU-ms per image", "digits version 1"):
        assert word in out


def test_json_is_for_scripts(penult, server):
    """--json prints one line of JSON: settings, machine, model, rates, percentiles, errors, costs."""
    code, out, _ = penult(
        "--target", server.target, *QUICK, "--json", "--rate", "30", "--metrics", f"{server.http}/metrics"
    )
    (line,) = out.splitlines()
    answer = json.loads(line)
    assert code == 0
    wanted = {
        "date", "machine", "settings", "model", "photos", "window_s", "requests", "images_per_s", "good_images_per_s",
        "requests_per_s", "latency", "rejected", "errors", "item_errors", "unfinished", "not_sent", "stages_ms",
        "late_p99_ms", "client_cpu_ms_per_image", "server_cpu_ms_per_image", "server_batch_images", "is_interrupted",
    }  # fmt: skip
    assert wanted <= set(answer)
    assert {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "max_ms"} <= set(answer["latency"])
    assert answer["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert (answer["settings"]["rate"], answer["model"]["name"]) == (30.0, "digits")
    # The made-up JPEGs are of a photo's size, in pixels and bytes.
    assert 30_000 < answer["message_bytes"] < 70_000


def test_files_are_written(penult, server, tmp_path):
    """--out leaves bench.json, the same as --json prints, and a picture that opens."""
    code, out, err = penult("--target", server.target, *QUICK, "--raw", "--json", "--out", tmp_path / "new" / "folder")
    assert code == 0
    written = json.loads((tmp_path / "new" / "folder" / "bench.json").read_text())
    assert written == json.loads(out)
    picture = Image.open(io.BytesIO((tmp_path / "new" / "folder" / "bench.png").read_bytes()))
    assert picture.format == "PNG"
    assert 800 <= picture.width <= 2000
    assert len(picture.convert("L").getcolors()) > 10
    assert "bench.png" in err


def test_without_matplotlib_the_numbers_are_written(server, tmp_path):
    """A missing matplotlib costs the picture and one line that says how to get it."""
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'matplotlib' else find(name, *more)\n"
        "sys.modules['matplotlib'] = None\nfrom penult.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "bench", "--target", server.target, *QUICK, "--raw", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "pip install '.[bench]'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_without_pillow_a_line_says_what_to_do(server):
    """The made-up JPEGs need Pillow; the base install is told of --photos and --raw instead."""
    code = "import sys\nsys.modules['PIL'] = None\nfrom penult.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "bench", "--target", server.target, *QUICK]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    assert "--photos FOLDER or --raw" in result.stderr
    assert subprocess.run([*command, "--raw"], capture_output=True, timeout=300, check=False).returncode == 0


def test_ctrl_c_reports_what_was_measured(server, samples):
    """SIGINT ends the measurement; the report says so and holds what there was."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penult.cli", "bench", "--target", server.target, "--raw", "--warmup", "0",
         "--duration", "600", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    answered = ("penult_requests_total", ("code", "OK"), ("method", "Classify"), ("model", "digits"), ("version", "1"))
    before = samples(server.http).get(answered, 0)
    eventually(lambda: samples(server.http).get(answered, 0) > before + 20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    answer = json.loads(out)
    assert answer["is_interrupted"]
    assert answer["requests"] > 10
    assert answer["window_s"] < 600


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--rate", "5", "--concurrency", "3"), "--rate or --concurrency"),
        (("--rate", "5", "--stream"), "--stream"),
        (("--rate", "nan"), "--rate"),
        (("--requests", "5", "--duration", "3"), "--duration"),
        (("--requests", "0"), "at least 1"),
        (("--duration", "0"), "above 0"),
        (("--warmup", "-1"), "at least 0"),
        (("--raw", "--photos", "."), "--photos"),
        (("--photos", "nowhere"), "no JPEG, PNG, WebP"),
        (("--rpc", "describe", "--scorer", "svm"), "--scorer"),
        (("--arrivals", "uniform"), "--rate"),
        (("--window", "3"), "--stream"),
        (("--goal", "latency"), "--tune"),
        (("--tune", "--metrics", "http://127.0.0.1:1"), "own servers"),
        (("--model", "nobody"), "digits"),
        (("--metrics", "http://127.0.0.1:1/metrics"), "no metrics"),
        (("--out", "/dev/null/folder"), "--out"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(penult, server, options, word, monkeypatch):
    """Contradictions and missing things are one line that says what to do, and exit code 1."""
    monkeypatch.setenv("PENULT_TARGET", server.target)
    code, out, err = penult(*options)
    (line,) = err.splitlines()
    assert (code, out) == (1, "")
    assert line.startswith("penult: ")
    assert word in line


def test_the_grpc_port_gives_no_metrics(penult, server):
    """The other port, which people mix up, answers no HTTP: one line without what came back."""
    code, out, err = penult("--target", server.target, "--raw", "--metrics", f"http://{server.target}/metrics")
    (line,) = err.splitlines()
    assert (code, out) == (1, "")
    assert "this is no HTTP server; penult serve prints the address" in line


def test_no_server_is_one_line(penult):
    """A target where nobody listens is named, with what to do."""
    code, _, err = penult("--target", "127.0.0.1:1", "--raw", *QUICK)
    (line,) = err.splitlines()
    assert code == 1
    assert "no server answers at 127.0.0.1:1" in line


def test_nothing_answered_is_a_failure(penult, server, tmp_path):
    """Where every image failed the exit code is 1, and the reasons are told."""
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    code, out, err = penult("--target", server.target, *QUICK, "--photos", tmp_path)
    assert code == 1
    assert "images failed: IMAGE_" in out
    assert "no image was answered" in err


def test_variables_give_options_and_flags_win(capsys):
    """PENULT_BENCH_* are announced, and contradict flags as flags do; PENULT_TARGET is the server's address."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    variables = {"PENULT_BENCH_CONCURRENCY": "3", "PENULT_BENCH_DURATION": "4", "PENULT_TARGET": "there:1"}
    flags = vars(parser.parse_args(["--duration", "2"]))
    load = settings_of(flags, NONE, variables).load
    assert (load.concurrency, load.duration_s, load.target) == (3, 2.0, "there:1")
    assert capsys.readouterr().err == "penult: settings from PENULT_BENCH_CONCURRENCY, PENULT_BENCH_DURATION\n"
    with pytest.raises(BenchError, match="--rate or --concurrency"):
        settings_of(flags | {"rate": 5.0}, NONE, variables)
