"""A server's processes, measured from outside: CPU time, context switches and memory, of it and of its children."""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Processes:
    """A command that runs until stop(), with the processes that it starts."""

    def __init__(
        self, command: list[str], log: Path, env: dict[str, str] | None = None, is_asked: bool = False
    ) -> None:
        """Start it; standard error goes to the log, and standard output too unless the caller reads it."""
        self.started, self._log = time.perf_counter(), log
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE if is_asked else None, stdout=subprocess.PIPE if is_asked else sink,
                stderr=sink, text=True, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"} | (env or {}),
            )  # fmt: skip
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The process id of the command."""
        return self._process.pid

    def read(self) -> str:
        """Return the next line of standard output; end this program with the log if there is none."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        return line or sys.exit(f"a server ended: {self._log.read_text()}")

    def ask(self, line: str) -> str:
        """Write a line to standard input and return the next one of standard output."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read()

    def check(self) -> None:
        """End this program with the log if the command has ended."""
        if self._process.poll() is not None:
            sys.exit(f"a server ended: {self._log.read_text()}")

    def pids(self) -> list[int]:
        """Return the process ids of the command and of everything that it started."""
        found = [self.pid]
        for pid in found:
            for thread in _entries(Path(f"/proc/{pid}/task")):
                found += [int(child) for child in _text(thread / "children").split()]
        return found

    def cpu_s(self) -> float:
        """Return CPU seconds, by the clock of each process, to the nanosecond."""
        return sum(_clock(pid) for pid in self.pids())

    def user_and_system_s(self) -> tuple[float, float]:
        """Return CPU seconds in the processes' own code and in the kernel, to 10 ms."""
        fields = [_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split() for pid in self.pids()]
        user, system = (sum(int(row[at]) for row in fields if row) / _TICKS for at in (11, 12))
        return user, system

    def switches(self) -> int:
        """Return the context switches of the threads that there are."""
        threads = [thread for pid in self.pids() for thread in _entries(Path(f"/proc/{pid}/task"))]
        lines = [line for thread in threads for line in _text(thread / "status").splitlines()]
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    def pss_mb(self) -> float:
        """Return the memory of the processes, shared pages divided among those who share them."""
        rollups = [_text(Path(f"/proc/{pid}/smaps_rollup")).splitlines() for pid in self.pids()]
        return sum(int(line.split()[1]) for rows in rollups for line in rows if line.startswith("Pss:")) / 1000

    def stop(self) -> None:
        """End the command, and what it started."""
        pids = self.pids() if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in pids[1:]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue


def _clock(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended
        return 0.0


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
