"""Servers side by side, and what a photo costs each: CPU time of the process, eight callers with one photo each."""

import atexit
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

from penult.client import Client, Security

CALLERS = 8
_OPTIONS = ("--port", "0", "--metrics-port", "0", "--watch-s", "0", "--lookup", "off", "--drain-lead", "0")


class Served:
    """One of the servers, started by `command` with its own options behind it, and how it is asked."""

    def __init__(
        self, command: list[str], models: Path, log: Path, *options: str,
        security: Security | None = None, env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                [*command, "--models", str(models), *_OPTIONS, *options],
                stdout=subprocess.PIPE, stderr=sink, text=True, env=os.environ | (env or {}),
            )  # fmt: skip
        atexit.register(self.process.kill)  # also where another one does not start
        told = dict(part.split("=", 1) for part in self.process.stdout.readline().split()[1:])
        if "grpc" not in told:
            sys.exit(f"a server did not start: {log.read_text()}")
        self.target, self.http = told["grpc"], told["metrics"].removesuffix("/metrics")
        self._security = security or Security()

    def cpu_s(self) -> float:
        """CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_ms_per_photo(self, photos: list[bytes], seconds: float) -> float:
        """Let eight callers ask for a while, one photo each time."""
        end, counts = time.monotonic() + seconds, [0] * CALLERS

        def ask(caller: int) -> None:
            with Client(self.target, security=self._security) as client:
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

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


def compare(servers: dict[str, Served], base: str, photos: list[bytes], rounds: int, seconds: float) -> None:
    """Print CPU time per photo, and ratios to `base` within each round."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        server.cpu_ms_per_photo(photos, 2)  # warm
    order = list(servers.items())
    for number in range(rounds):
        order = [*order[1:], order[0]]  # whoever comes first meets another machine than whoever comes last
        for name, server in order:
            found[name].append(server.cpu_ms_per_photo(photos, seconds))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for name, values in found.items():
        ratios = [value / other for value, other in zip(values, found[base], strict=True)]
        print(
            f"{name}: {median(values):.3f} CPU-ms a photo, ratio {median(ratios):.3f} "
            f"({min(ratios):.3f} … {max(ratios):.3f}), goal 1.02", flush=True,
        )  # fmt: skip
