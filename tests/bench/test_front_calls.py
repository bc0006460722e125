"""The front's calls a request stay within bounds of bench/front_calls.json; the guard itself can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "front_calls.py"
RENEW = ["--write"] if os.environ.get("PENULT_WRITE_CALLS") else []


def guard(models: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--models", str(models), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.server
def test_a_request_costs_no_more_calls_than_the_file_allows(models):
    found = guard(models, *RENEW)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.server
def test_a_count_out_of_bounds_fails_and_prints_the_functions_called_most(models, tmp_path):
    numbers = {kind: calls / 2 for kind, calls in json.loads(SCRIPT.with_suffix(".json").read_text()).items()}
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    found = guard(models, "--numbers", tmp_path / "numbers.json")
    assert found.returncode == 1, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    assert sum(line.startswith("  ") for line in lines) == 10 * len(numbers)
    assert any("PENULT_WRITE_CALLS=1" in line for line in lines)
