"""Models made by Lightning, transformers and torch-model-archiver are imported as their libraries run them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.export.jobs import foreign_models

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def environment(packages: Callable[[str], Path]) -> dict[str, str]:
    """Variables with which a program finds the libraries."""
    return os.environ | {"PYTHONPATH": str(packages("foreign"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models."""
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def found(environment: dict[str, str], folder: Path) -> dict[str, dict]:
    """What foreign_models.py prints, by name."""
    made = subprocess.run(
        [sys.executable, foreign_models.__file__, folder], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    return {each["name"]: each for each in map(json.loads, made.stdout.splitlines())}


@pytest.mark.parametrize("name", foreign_models.MAKERS)
def test_a_bundle_answers_as_the_library(name: str, found: dict[str, dict]):
    """Logits are equal on the same pixels, and a photo's pixels are within two gray levels of the processor's."""
    assert found[name]["difference"] < 1e-4
    assert found[name]["parity"]["descriptor_difference"] < 1e-4
    assert found[name].get("pixels", 0) < 2.5


def test_the_command_imports_a_folder(environment: dict[str, str], folder: Path, found: dict[str, dict]):
    """A process that has not used transformers before imports a folder too."""
    assert "transformers resnet" in found
    command = [
        sys.executable,
        "-m",
        "penult.cli",
        "import",
        folder / "transformers-resnet",
        "--out",
        folder / "models" / "again",
    ]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert made.returncode == 0, made.stderr
