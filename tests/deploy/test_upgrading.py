"""What docs/upgrading.md and docs/troubleshooting.md do and show, done to a real server."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penult.client import Client

DOCS = Path(__file__).parents[2] / "docs"
UPGRADING, TROUBLES = ((DOCS / f"{name}.md").read_text() for name in ("upgrading", "troubleshooting"))
BIN = Path(sys.executable).parent


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def until_served(client: Client, versions: set[int]) -> None:
    """Wait until these versions of pets are served, a minute at most."""
    end = time.monotonic() + 60
    while (served := {model.version.version for model in client.list_models()}) != versions:
        assert time.monotonic() < end, served
        time.sleep(0.1)


@pytest.fixture
def shop(publish_brightness, tmp_path) -> Path:
    """A folder with models/pets/3, and pets/4 below new/."""
    publish_brightness(tmp_path, "made")
    for place, version in (("models", 3), ("new", 4)):
        shutil.copytree(tmp_path / "made" / "1", tmp_path / place / "pets" / str(version))
    return tmp_path


def run(block: str, folder: Path) -> None:
    """Run a block of commands there, with penult on the path."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", block], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_upgrading_and_going_back(shop, start):
    """upgrading.md's commands: the new version is checked and serves, and the old one again once it is taken away."""
    check, copy, back = (
        next(b for b in blocks(UPGRADING, "bash") if word in b) for word in ("check new", "cp -R", "refused")
    )
    server = start(["serve", "--models=models", "--lookup=off", "--watch-s=0.2"], {}, {})
    with Client(f"127.0.0.1:{server.ports[50051]}") as client:
        until_served(client, {3})
        run(check, shop)
        run(copy, shop)
        until_served(client, {4})
        run(next(block for block in blocks(UPGRADING, "bash") if "for model in" in block), shop)
        run(back, shop)
        until_served(client, {3})


def test_pins_hold(shop, start):
    """Both pins of upgrading.md do what it says of them."""
    pins = sorted(set(re.findall(r"`--pin (\S+)`", UPGRADING)))
    assert pins == ["pets=3", "pets=3,pets=4", "pets=4"]
    shutil.copytree(shop / "new" / "pets" / "4", shop / "models" / "pets" / "4")
    for pin, versions in ((pins[0], {3}), (pins[1], {3, 4})):
        server = start(["serve", "--models=models", "--lookup=off", "--pin", pin], {}, {})
        with Client(f"127.0.0.1:{server.ports[50051]}") as client:
            until_served(client, versions)
            server.process.kill()


def test_a_refusal_reads_as_shown(shop, start):
    """The refusal that troubleshooting.md shows is what a damaged version gives, word by word."""
    server = start(["serve", "--models=models", "--lookup=off", "--watch-s=0.2"], {}, {})
    shown = next(line for block in blocks(TROUBLES, "log") for line in block.splitlines() if "refused" in line)
    damaged = shop / "new" / "pets" / "4"
    with (damaged / "model.onnx").open("r+b") as file:
        file.write(b"\0\0\0\0")
    damaged.rename(shop / "models" / "pets" / "4")
    end = time.monotonic() + 60
    while shown.replace("svm.pkl", "model.onnx") not in server.log.read_text():
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.1)
