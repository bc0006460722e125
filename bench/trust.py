"""What trust costs on the way of every request: tokens, TLS, fair turns, recovery.

    python bench/trust.py [--model mobilenet_v3_small] [--before REVISION] [--rounds 7] [--seconds 6]

Servers of a bench bundle side by side (bench/prepare.py): as it is, with tokens, with tokens and TLS; and, with
--before, the service of another revision, out of git. Rounds are interleaved; the figure is CPU time of the server's
process per photo, eight callers with one photo each.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import prepare

from penult.client import Client, Security

ROOT = Path(__file__).parent.parent
CALLERS = 8
NOW = "as it is"


class Served:
    """One of the servers, and how it is asked."""

    def __init__(self, models: Path, log: Path, security: Security, source: Path | None, *options: str) -> None:
        paths = os.pathsep.join(str(source / room) for room in ("proto", "service", "export")) if source else ""
        command = [sys.executable, "-P", "-m", "penult.cli", "serve", "--models", models, "--port", "0"]
        command += ["--metrics-port", "0", "--watch-s", "0", "--lookup", "off", "--drain-lead", "0", *options]
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=sink, text=True,
                env=os.environ | {"PYTHONPATH": paths},
            )  # fmt: skip
        told = dict(part.split("=", 1) for part in self.process.stdout.readline().split()[1:])
        if "grpc" not in told:
            sys.exit(f"a server did not start: {log.read_text()}")
        self.target = told["grpc"]
        self.security = security

    def cpu_s(self) -> float:
        """CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_ms_per_photo(self, photos: list[bytes], seconds: float) -> float:
        """Let eight callers ask for a while, one photo each time."""
        end, counts = time.monotonic() + seconds, [0] * CALLERS

        def ask(caller: int) -> None:
            with Client(self.target, security=self.security) as client:
                while time.monotonic() < end:
                    client.classify([photos[counts[caller] % len(photos)]])
                    counts[caller] += 1

        before = self.cpu_s()
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1000 * (self.cpu_s() - before) / sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--before", metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6)
    wanted = parser.parse_args()
    prepare.prepare_one(wanted.model)
    photos = prepare.jpegs()
    with tempfile.TemporaryDirectory() as name:
        servers = start(Path(name), wanted)
        try:
            compare(servers, photos, wanted)
        finally:
            for server in servers.values():
                server.process.terminate()
                server.process.wait(30)


def start(folder: Path, wanted: argparse.Namespace) -> dict[str, Served]:
    """Start the servers, each with a copy of the model."""
    models = folder / "models"
    shutil.copytree(prepare.MODELS / wanted.model, models / wanted.model)
    tokens = folder / "tokens"
    tokens.write_text(f"bench read {hashlib.sha256(b'bench').hexdigest()}\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
    known, safe = Security(token="bench"), Security(ca=folder / "cert.pem", token="bench")
    servers = {
        NOW: Served(models, folder / "log-now", Security(), None),
        "with tokens": Served(models, folder / "log-tokens", known, None, "--tokens", str(tokens)),
        "with tokens and TLS": Served(models, folder / "log-tls", safe, None, "--tokens", str(tokens), *tls),
    }
    if wanted.before:
        source = folder / "before"
        source.mkdir()
        archive = subprocess.run(["git", "archive", wanted.before], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        servers[f"at {wanted.before}"] = Served(models, folder / "log-before", Security(), source)
    return servers


def compare(servers: dict[str, Served], photos: list[bytes], wanted: argparse.Namespace) -> None:
    """Print CPU time per photo, and ratios within each round to the revision before, or else to what is now."""
    base = f"at {wanted.before}" if wanted.before else NOW
    found: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        server.cpu_ms_per_photo(photos, 2)  # warm
    order = list(servers.items())
    for number in range(wanted.rounds):
        order = [*order[1:], order[0]]  # whoever comes first meets another machine than whoever comes last
        for name, server in order:
            found[name].append(server.cpu_ms_per_photo(photos, wanted.seconds))
        print(f"round {number + 1} of {wanted.rounds}", file=sys.stderr, flush=True)
    for name, values in found.items():
        ratios = [value / other for value, other in zip(values, found[base], strict=True)]
        print(
            f"{name}: {median(values):.3f} CPU-ms a photo, ratio {median(ratios):.3f} "
            f"({min(ratios):.3f} … {max(ratios):.3f})", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
