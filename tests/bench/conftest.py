"""Helpers of the load generator's tests: a run in this process, the command line, a server that is ours to hurt."""

import asyncio
from collections.abc import Callable

import pytest

from penult import cli
from penult.bench import load
from penult.bench.measure import Report
from penult.bench.settings import LoadSettings


@pytest.fixture
def measure(server) -> Callable[..., Report]:
    """Put load on a server, by default the shared one, and return the report: measure(requests=40)."""

    def run(**settings: object) -> Report:
        # Noise at the model's size: the server then has next to nothing to do, and the tests are quick.
        chosen = {"target": server.target, "is_raw": "photos" not in settings, "warmup_s": 0.0} | settings
        return asyncio.run(load.run(LoadSettings(**chosen)))

    return run


@pytest.fixture
def penult(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `penult bench` in this process: (exit code, stdout, stderr)."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["bench", *map(str, argv)])
        return code, *capsys.readouterr()

    return run
