"""The systemd unit: right by systemd, and its command runs."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


def unit() -> dict[str, list[str]]:
    """The unit's lines: {"ExecStart": [...]}."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / "penult.service").read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_systemd_takes_the_unit(tmp_path):
    """systemd-analyze finds nothing wrong with it, once the command is there; a misspelt line it does find."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (Debian's package systemd)")
    text = (DEPLOY / "systemd" / "penult.service").read_text()
    text = text.replace("/opt/penult/bin/penult", "/bin/true")
    for change, complaints in (("", False), ("ProtectSistem=strict", True)):
        (tmp_path / "penult.service").write_text(text.replace("ProtectSystem=strict", change) if change else text)
        command = ["systemd-analyze", "verify", "--man=no", tmp_path / "penult.service"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "penult.service" in line]
        assert bool(said) == complaints, said


def test_the_units_command_serves(quick, start, tmp_path):
    """Its command runs, with the file of settings that lies beside it, and stops within the time that it has."""
    (command,) = unit()["ExecStart"]
    verb, option, path = command.split()[1:]
    assert (verb, option, path) == ("serve", "--config", "/etc/penult/penult.toml")
    text = (DEPLOY / "systemd" / "penult.toml").read_text()
    state = f"/var/lib/{unit()['StateDirectory'][0]}"
    given = tomllib.loads(text)
    assert all(given[name].startswith(state) for name in ("models", "lookup"))
    assert given["drain_lead"] + given["grace"] < int(unit()["TimeoutStopSec"][0])
    file = tmp_path / "penult.toml"
    file.write_text(text.replace(f"{state}/models", str(quick)).replace(state, str(tmp_path)))
    server = start([verb, option, str(file)], {}, {})
    assert server.ask_grpc(50051, "")
