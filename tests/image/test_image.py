"""The container image, built from the real Dockerfile and run: as docs/images.md says, by the commands that it gives."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = (ROOT / "docs" / "images.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
MAX_BYTES = 450_000_000
RESTRICTED = "--read-only --cap-drop ALL --security-opt no-new-privileges"
# All that serving may import, and that scikit-learn still scores what is not a plain SVM, less tests and headers.
IMPORTS = """
import importlib, importlib.util, pkgutil
import penult.bundle, penult.client, penult.lookup, penult.service
for room in (penult.bundle, penult.client, penult.lookup, penult.service):
    for each in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        # client.tools works with Parquet and pictures, on the client's machine; Milvus is an image of its own.
        if not each.name.startswith("penult.client.tools.") and not each.name.endswith(".milvus"):
            importlib.import_module(each.name)
import opentelemetry.exporter.otlp.proto.grpc.trace_exporter, pgvector.psycopg, psycopg_pool
print([name for name in ("torch", "nvidia", "pip", "pytest", "sklearn", "scipy") if importlib.util.find_spec(name)])
"""
# Run beside the server: its processes, and those of them that have ended and were not waited for.
PROCESSES = """
import os, pathlib
status = {}
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if int(folder.name) != os.getpid():
        status[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()[0]
print(*(number for number, state in status.items() if state != "Z"), "zombies", *(n for n, s in status.items() if s == "Z"))
"""


def block(word: str) -> str:
    """The one block of the docs with a word in it."""
    (text,) = (text for _, text in BLOCKS if word in text)
    return text


@pytest.fixture(scope="module")
def serving(engine, desk: Path):
    """The container of the docs' `Run`, ready."""
    engine.run(block("--name penult").replace("penult:cpu", "--env PENULT_DRAIN_LEAD=10 penult:cpu"), desk)
    wait_until_ready(engine)


def wait_until_ready(engine, name: str = "penult", seconds: int = 60) -> None:
    """Ask the image's own health check until it is content."""
    asking = f"for n in $(seq {seconds}); do podman healthcheck run {name} && exit 0; sleep 1; done; podman logs {name} >&2; exit 1"
    engine.run(asking)


def python(engine, code: str, options: str = "") -> str:
    """What some Python prints inside a restricted container of its own."""
    return engine.run(
        f'docker run --rm {RESTRICTED} {options} --entrypoint python penult:cpu -c "$CODE"', CODE=code
    ).stdout


def test_every_command_of_the_docs_is_run_here():
    """No block of docs/images.md that can run without a GPU stays untested."""
    tested = [
        block(word)
        for word in ("make image", "--name penult", "docker exec", "docker stop", "docker build", "sbom.json")
    ]
    assert [text for language, text in BLOCKS if language == "bash" and text not in tested] == []


def test_size(engine, built):
    """The cpu image adds at most 450 MB to its base."""
    sizes = [
        int(engine.run(f"podman image inspect --format '{{{{.Size}}}}' {name}").stdout)
        for name in ("penult:cpu", "penult-base:debian")
    ]
    print(f"{(sizes[0] - sizes[1]) / 1e6:.0f} MB above the base")
    assert 0 < sizes[0] - sizes[1] <= MAX_BYTES


def test_what_serving_needs_is_there(engine, built):
    """Every module of serving imports, and there is neither torch nor CUDA nor scikit-learn nor pip."""
    assert python(engine, IMPORTS) == "[]\n"


def test_nothing_waits_to_be_compiled(engine, built):
    """Every module has its compiled form beside it, so that a read-only container starts as fast as any."""
    code = """
import pathlib
site = next(pathlib.Path("/opt/penult/lib").glob("python3*/site-packages"))
sources = [path for path in site.rglob("*.py")]
print(len(sources) > 1000, [str(p) for p in sources if not any((p.parent / "__pycache__").glob(p.stem + ".*.pyc"))])"""
    assert python(engine, code) == "True []\n"


def test_it_serves_restricted(engine, serving):
    """As user 65532 and PID 1, without any capability, on a root and bundles that cannot be written."""
    code = """
import pathlib
status = dict(line.split(":\\t") for line in open("/proc/1/status").read().splitlines() if ":\\t" in line)
print(open("/proc/1/cmdline").read().split("\\0")[1:-1], status["Uid"].split(), status["CapEff"], status["CapBnd"], status["NoNewPrivs"])
for folder in ("/", "/opt/penult", "/models", "/models/pets/1", "/lookup"):
    try:
        (pathlib.Path(folder) / "probe").touch()
        print(folder)
    except OSError:
        pass"""
    said = engine.run('podman exec penult python -c "$CODE"', CODE=code).stdout.splitlines()
    assert said[0] == f"['/opt/penult/bin/penult', 'serve'] {['65532'] * 4} {'0' * 16} {'0' * 16} 1"
    assert said[1:] == ["/lookup"]


def test_it_answers_from_outside(engine, serving, desk: Path):
    """The docs' health check passes; photos are stored and classified through the published port."""
    script = block("docker exec").replace(" PHOTO\n", " --json PHOTOS/bright/1.png\n")
    said = engine.run(script, desk).stdout
    answer = json.loads(said[said.index("{") :])
    assert answer["results"][0]["label"] == "bright"
    metrics = engine.run("curl -s http://127.0.0.1:9095/metrics").stdout
    assert 'penult_requests_total{code="OK",method="Classify"' in metrics


def test_it_drains_and_ends_with_0(engine, serving, desk: Path):
    """SIGTERM reaches PID 1: first the health check fails while requests are answered, then the exit code is 0."""
    draining = """
docker kill --signal TERM penult
for n in $(seq 40); do
  said=$(docker exec penult python -m penult.client.health 2>&1) || { echo "$said"; break; }
done
.venv/bin/penult classify --model pets --json PHOTOS/dark/1.png
docker wait penult
"""
    said = engine.run(draining, desk).stdout
    assert "127.0.0.1:50051: NOT_SERVING\n" in said
    assert '"label": "dark"' in said
    assert said.endswith("\n0\n")
    assert engine.run(block("docker stop"), desk).stdout.split() == ["penult", "0", "penult"]


def test_what_was_stored_outlives_the_container(engine, serving, desk: Path):
    """A new container on the same volume still has the collection."""
    engine.run("docker rm --force --ignore penult; " + block("--name penult"), desk)
    wait_until_ready(engine)
    assert "known" in engine.run(".venv/bin/penult index list --json; docker rm --force --time 0 penult", desk).stdout


def test_workers_without_a_shell(engine, desk: Path):
    """Without shells and with several workers: one that dies is waited for and started again; SIGTERM ends all with 0."""
    (desk / "empty").touch()
    shells = " ".join(f"--volume {desk}/empty:/bin/{name}:ro" for name in ("sh", "bash"))
    engine.run(
        f"docker run --detach --name workers {RESTRICTED} --read-only-tmpfs=false {shells} --env PENULT_DRAIN_LEAD=0"
        f" --volume {desk}/models:/models:ro penult:cpu serve --workers 2"
    )
    wait_until_ready(engine, "workers")
    before = processes(engine)
    assert before[0][0] == 1
    assert (len(before[0]), before[1]) == (3, [])
    victim = before[0][-1]
    engine.run(f"podman exec workers python -c 'import os; os.kill({victim}, 9)'")
    until_two = "for n in $(seq 60); do podman logs workers 2>&1 | grep -c 'worker . is ready' | grep -qx 3 && exit 0; sleep 1; done; podman logs workers; exit 1"
    engine.run(until_two)
    after = processes(engine)
    assert (len(after[0]), after[1], victim in after[0]) == (3, [], False)
    assert (
        engine.run(
            "docker stop --time 30 workers; docker inspect --format '{{.State.ExitCode}}' workers"
        ).stdout.split()[-1]
        == "0"
    )


def processes(engine) -> tuple[list[int], list[int]]:
    """The container's processes, PID 1 first, and its zombies."""
    living, zombies = engine.run('podman exec workers python -c "$CODE"', CODE=PROCESSES).stdout.split("zombies")
    return sorted(map(int, living.split())), [int(number) for number in zombies.split()]


def test_a_bundle_is_baked_in_by_two_lines(engine, built, desk: Path):
    """The docs' child Dockerfile makes an image whose bundle passes its checks."""
    (desk / "Dockerfile.pets").write_text(block("FROM penult:cpu"))
    assert "All digests match" in engine.run(block("docker build"), desk).stdout


def test_the_bill_of_materials_is_true(engine, built, desk: Path):
    """The file beside the image is the one inside; it lists what Python finds there, in the versions that are locked."""
    said = engine.run(block("sbom.json"), desk).stdout.splitlines()
    assert re.fullmatch(r"\d+ packages, all listed", said[0])
    labels = json.loads(said[1])
    prefix = "org.opencontainers.image."
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels[prefix + "revision"])
    wanted = {"version": metadata.version("penult"), "licenses": "Apache-2.0", "base.name": "penult-base:debian"}
    assert {name: labels[prefix + name] for name in wanted} == wanted
    locked = set(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / "locks" / "cpu.txt").read_text(), re.MULTILINE))
    bill = json.loads((desk / "sbom-cpu.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "penult")
    assert {(re.sub(r"[_.]", "-", each["name"].lower()), each["version"]) for each in bill["components"]} <= locked
