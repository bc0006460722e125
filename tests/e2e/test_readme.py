"""The README's blocks run as they stand, but for the substitutions below."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
CLIENT = re.findall(r"^```javascript\n(.*?)^```", (ROOT / "docs" / "client.md").read_text(), re.MULTILINE | re.DOTALL)
SECURITY = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE | re.DOTALL)
LEARNING = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / "learning.md").read_text(), re.MULTILINE | re.DOTALL)
# Run by .ci/run on a clean clone: running them here would start this suite within itself.
SET_UP = "make demo\nmake test\n"
SERVE = "make serve\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout after set-up, with a model repository of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (".venv", "proto"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "models").mkdir()
    return folder


@pytest.fixture(scope="module")
def pets(checkout: Path, few_digits: Path) -> Path:
    """What `Your own photos` leaves behind, with small pictures and a small network in place of a download."""
    block = next(text for language, text in BLOCKS if "penult train" in text)
    script = block.replace("PHOTOS --arch resnet18", f"{few_digits} --arch tiny5 --weights none")
    script = re.sub(r"(penult train .*)", r"\1 --epochs 8", script)
    subprocess.run(["bash", "-euc", script], cwd=checkout, check=True, timeout=300)
    return checkout / "models"


@pytest.fixture(scope="module")
def served(pets: Path, start_server, tmp_path_factory):
    """`make serve` on the repository that training made, with --http."""
    return start_server(pets, "--http", "--lookup", str(tmp_path_factory.mktemp("lookup")))


@pytest.fixture(scope="module")
def target(served) -> str:
    """Where it answers over gRPC."""
    return served.target


def adapted(block: str, target: str, digits: Path) -> str:
    photo = next((digits / "test").glob("3/*.png"))
    return block.replace("PHOTO", str(photo)).replace("127.0.0.1:50051", target)


def block_of(language: str, word: str) -> str:
    return next(text for found, text in BLOCKS if found == language and word in text)


def test_every_block_is_run_somewhere():
    """No block of the README stays untested."""
    run_here = [block_of("bash", "penult train"), block_of("bash", "classify"), block_of("python", "ItemFailure")]
    run_here += [block_of("bash", "--sweep"), block_of("bash", "penult lookup")]
    run_here += [block_of("bash", "penult bench"), block_of("bash", "penult sign"), block_of("bash", "penult label")]
    run_here += [block_of("python", "tritonclient"), block_of("bash", "curl")]
    assert [text for _, text in BLOCKS if text not in (*run_here, SET_UP, SERVE)] == []


def test_ci_runs_the_two_commands():
    """.ci/run runs exactly the README's commands."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [command for command in SET_UP.splitlines() if command not in lines] == []


def test_report_is_where_the_readme_says(pets: Path):
    """Training leaves the report where the README points."""
    assert (pets / "pets" / "1" / "report" / "index.html").is_file()


def _ways_to_learn(block: str, photos: Path, weights: Path) -> str:
    """Put small pictures, a small network and few epochs in place of a download and hours."""
    words = f"--arch tiny5 --weights {weights} --epochs 1 --head-epochs 2 --augment gentle"
    block = block.replace("--arch squeezenet1_1 --weights FILE", "--arch resnet18").replace("--arch resnet18", words)
    return block.replace("PHOTOS", str(photos)).replace("models/pets", "models/few")


def _run(block: str, folder: Path, **env: str) -> str:
    path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | env
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ways_to_learn_block(checkout: Path, pets: Path, few_digits: Path, tiny_weights: Path):
    """A dry run, both sweeps and a new SVM: plan, tables, pictures and a second version."""
    # penult svm needs a model of these photos; the README's reader has one by then.
    shutil.copytree(pets / "pets", checkout / "models" / "few")
    printed = _run(_ways_to_learn(block_of("bash", "--sweep"), few_digits, tiny_weights), checkout)
    assert "best on validation photos: --freeze" in printed
    for kind in ("freeze", "labels"):
        assert (checkout / "models" / "few" / f"sweep-{kind}" / "sweep.png").is_file()
    assert sorted(path.name for path in (checkout / "models" / "few").glob("[0-9]*")) == ["1", "2"]


def test_learning_page_blocks(checkout: Path, few_digits: Path, tiny_weights: Path):
    """What docs/learning.md says beyond the README runs as well: freezing, an earlier layer, two processes."""
    script = "".join(block for block in LEARNING if "--sweep labels" not in block)
    # Sweeps are run above, int8 in tests/export/jobs/test_quantize.py.
    lines = [line for line in script.splitlines() if "--sweep" not in line and not re.search("quantize|--int8", line)]
    assert len(lines) == 4
    printed = _run(_ways_to_learn("\n".join(lines), few_digits, tiny_weights), checkout)
    assert printed.count("test photos; default scorer:") == 4


def test_label_block(checkout: Path, few_digits: Path):
    """The labelling page's address is printed, and an answer is in the file."""
    block = block_of("bash", "penult label").replace("PHOTOS", str(few_digits / "train"))
    block = block.replace("--arch resnet18", "--arch tiny5 --weights none --no-browser --json")
    # The network has random weights, which cannot be published.
    block = "exec " + re.sub(r" --publish \S+", "", block)
    with subprocess.Popen(["bash", "-euc", block], cwd=checkout, stdout=subprocess.PIPE, text=True) as process:
        url = json.loads(process.stdout.readline())["url"]
        address, token = url.split("/?")
        photo = json.loads(_get(f"{address}/api/next?{token}"))["items"][0]["id"]
        _get(f"{address}/api/labels?{token}", json.dumps({"id": photo, "label": "glass"}).encode())
        assert (checkout / "labels.csv").read_text().splitlines()[1].startswith(f"{photo},glass")
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def _get(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=100) as answer:
        return answer.read()


def test_command_line_block(pets: Path, target: str, digits: Path, checkout: Path):
    """The classify and describe commands answer."""
    script = adapted(block_of("bash", "classify"), target, digits)
    result = subprocess.run(
        ["bash", "-euc", script], cwd=checkout, env=os.environ | {"PENULT_TARGET": target}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "scorer svm" in result.stdout or '"scorer": "svm"' in result.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/lookup.md"])
def test_lookup_block(served, digits: Path, checkout: Path, page: str, monkeypatch: pytest.MonkeyPatch):
    """Photos are stored, the nearest found and drawn, and let vote."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    block = next(text for text in blocks if "penult lookup" in text)
    monkeypatch.setenv("PENULT_TARGET", served.target)
    script = block.replace("PHOTOS", str(digits / "train"))
    printed = _run(adapted(script, served.target, digits), checkout)
    assert "scorer neighbours" in printed
    assert "sheet: sheet.png" in printed
    assert (checkout / "sheet.png").stat().st_size > 1000


def test_bench_block(pets: Path, start_server, digits: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    """Both loads and the tuning run; they leave numbers, a picture and a file for penult serve."""
    running = start_server(pets)
    script = block_of("bash", "penult bench").replace("PHOTOS", str(digits / "test"))
    script = script.replace("http://127.0.0.1:9095", running.http).replace("--tune", "--tune --raw --concurrency 1")
    monkeypatch.setenv("PENULT_TARGET", running.target)
    printed = _run(script.replace("penult bench", "penult bench --model pets --duration 0.5 --warmup 0.1"), checkout)
    assert printed.count("p99.9") >= 2
    assert "best: " in printed
    assert {path.name for path in (checkout / "bench-out").iterdir()} == {"bench.json", "bench.png"}


def test_tritonclient_block(triton_python: Path, target: str, digits: Path):
    """The block for tritonclient prints a label, in an environment that has no penult."""
    code = adapted(block_of("python", "tritonclient"), target, digits)
    done = subprocess.run([triton_python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in list("0123456789")


def test_curl_block(served, digits: Path, checkout: Path):
    """The block for curl prints a label and probabilities."""
    script = adapted(block_of("bash", "curl"), served.target, digits).replace("http://127.0.0.1:9095", served.http)
    labels, probabilities = (output["data"] for output in json.loads(_run(script, checkout))["outputs"])
    assert labels[0] in list("0123456789")
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_python_block(target: str, digits: Path, checkout: Path):
    """The Python client block prints a label, and a failure for what is no photo."""
    code = adapted(block_of("python", "ItemFailure"), target, digits)
    result = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-c", code],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^\d 0?\.\d+$|^\d 1\.0$", result.stdout, re.MULTILINE)
    assert "INVALID_ARGUMENT" in result.stdout


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js and npm, a client that we did not write")
def test_javascript_block(target: str, digits: Path, checkout: Path):
    """gRPC for Node.js, from the .proto alone, gets a label and a probability."""
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "@grpc/grpc-js", "@grpc/proto-loader"],
        cwd=checkout, check=True, timeout=180,
    )  # fmt: skip
    code = adapted(CLIENT[0], target, digits)
    result = subprocess.run(["node", "-e", code], cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert re.match(r"^\d 0?\.?\d+", result.stdout)


@pytest.fixture
def own_checkout(checkout: Path, pets: Path, tmp_path: Path) -> Path:
    """A checkout with models of its own, to be signed."""
    (tmp_path / ".venv").symlink_to(checkout / ".venv")
    shutil.copytree(pets, tmp_path / "models")
    return tmp_path


def test_what_the_readme_says_of_strangers_works(own_checkout: Path, start_server, digits: Path):
    """Signed, tokened and checked by the README's commands, the server that it names answers whoever has the token."""
    out = _run(block_of("bash", "penult sign"), own_checkout).splitlines()
    token = next(line for line in out if line.startswith("penult_"))
    assert "Signed by trusted key" in out[-1]
    flags = re.search(r"`penult serve (--trusted-key \S+ --tokens \S+)`", (ROOT / "README.md").read_text()).group(1)
    flags = [str(own_checkout / word) if not word.startswith("--") else word for word in flags.split()]
    target = start_server(own_checkout / "models", *flags, "--lookup", "off").target
    photo = next((digits / "test").glob("3/*.png"))
    ask = f"penult classify {photo} --model pets --target {target}"
    assert "label" in _run(ask, own_checkout, PENULT_TOKEN=token)
    with pytest.raises(AssertionError, match="--token-file"):
        _run(ask, own_checkout)


def test_the_page_on_security_works(own_checkout: Path, start_server, digits: Path):
    """Its commands sign, check, verify with OpenSSL, make a token and ask; its servers start with the flags it names."""
    photo = next((digits / "test").glob("3/*.png"))
    serves = [line for block in SECURITY for line in block.splitlines() if line.startswith("penult serve")]
    assert len(serves) == 3
    signing, tls, tokens, openssl = (
        next(block for block in SECURITY if word in block)
        for word in ("--new-key", "--tls-cert", "penult token", "openssl pkeyutl")
    )
    out = _run(re.sub("^penult serve.*$", "", signing, flags=re.MULTILINE), own_checkout)
    assert "Signed by trusted key" in out
    assert "Verified" in _run(openssl, own_checkout)
    make = ("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1 "
            "-keyout server-key.pem -out server.pem; cp server.pem authority.pem")  # fmt: skip
    _run(make, own_checkout)
    made = _run(tokens.splitlines()[0], own_checkout).strip()
    for line in serves:
        words = line.split()[2:]
        words = [str(own_checkout / word) if (own_checkout / word).exists() else word for word in words]
        server = start_server(own_checkout / "models", *words, "--lookup", "off")
        block = tls if "--tls-cert" in line else tokens
        if line in signing:
            continue
        ask = next(each for each in block.splitlines() if "classify" in each).replace(
            "photo.jpg", f"{photo} --model pets"
        )
        ask = ask.replace("PENULT_TOKEN=…", f"PENULT_TOKEN={made}")
        port = server.target.rsplit(":", 1)[1]
        ask = ask.replace("HOST:50051", f"127.0.0.1:{port}")
        _run(ask, own_checkout, PENULT_TARGET=f"127.0.0.1:{port}")
