"""Ways from a caller to several replicas: the shipped proxies with our addresses in them, a list, a name in DNS."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import pytest
from tests.scale.fleet import HOSTS, Fleet, wait_for

PROXIES = Path(__file__).parents[2] / "deploy" / "proxy"
_NAME = "penult.test"


class Way(Protocol):
    """How callers reach the replicas."""

    target: str | list[str]

    def prepare_to_drain(self, place: int) -> None:
        """Do what has to be done before a replica's SIGTERM."""

    def close(self) -> None:
        """End what runs."""


def tool(name: str) -> str:
    """Return a program's path; skip where it is missing."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return path or pytest.skip(f"needs {name}; apt-get install {name}")


def replaced(text: str, changes: dict[str, str]) -> str:
    """Replace strings, every one of which is there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the shipped file"
        text = text.replace(old, new)
    return text


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


class Addresses:
    """penult's own client, told all addresses."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.target = fleet.targets

    def prepare_to_drain(self, place: int) -> None:
        """Nothing: clients see it."""

    def close(self) -> None:
        """Nothing runs."""


class Dns(Addresses):
    """penult's own client, told one name; a server of names knows its addresses."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._where = self._socket.getsockname()
        self.target = f"dns://127.0.0.1:{self._where[1]}/{_NAME}:{fleet.port}"

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(_answer(query), asker)

    def close(self) -> None:
        """End the server of names."""
        self._socket.sendto(b"", self._where)
        self._thread.join()
        self._socket.close()


def _answer(query: bytes) -> bytes:
    """Answer a question for IPv4 addresses with the fleet's, any other with nothing."""
    end = query.index(b"\0", 12) + 5
    hosts: Iterable[str] = HOSTS if query[end - 4 : end - 2] == b"\0\1" else ()
    records = [b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 1, 4) + socket.inet_aton(host) for host in hosts]
    return query[:2] + b"\x85\x80\0\1" + struct.pack(">HHH", len(records), 0, 0) + query[12:end] + b"".join(records)


class Proxy(ABC):
    """One of the shipped proxies."""

    def __init__(
        self,
        fleet: Fleet,
        folder: Path,
        changes: dict[str, str] | None = None,
        edit: Callable[[str, str], str] = lambda text, target: text,
    ) -> None:
        self.port = _free()
        self.target = f"127.0.0.1:{self.port}"
        self._file = folder / "proxy.conf"
        command = self.command(folder)  # before anything is open, for it may skip the test
        self._text = edit(self.configuration(fleet, folder, changes or {}), self.target)
        self._log = (folder / "proxy.log").open("w")
        self._file.write_text(self._text)
        self.process = subprocess.Popen(command, stderr=self._log, stdout=self._log)
        wait_for(self._listens, "the proxy listens")

    @abstractmethod
    def configuration(self, fleet: Fleet, folder: Path, changes: dict[str, str]) -> str:
        """Return the shipped file with other addresses in it."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """Return what runs it in the foreground."""

    @abstractmethod
    def prepare_to_drain(self, place: int) -> None:
        """Do what comes before a replica is told to leave."""

    def _listens(self) -> bool:
        assert self.process.poll() is None, Path(self._log.name).read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()
        self._log.close()


class Haproxy(Proxy):
    """HAProxy, which asks every replica whether it is ready."""

    def prepare_to_drain(self, place: int) -> None:
        """Nothing: it asks for readiness itself."""

    def configuration(self, fleet: Fleet, folder: Path, changes: dict[str, str]) -> str:
        """Return the shipped file with other addresses in it."""
        servers = {
            f"10.0.0.1{n}:50051 check-proto h1 port 9095": f"{target} check-proto h1 port {fleet.metrics_port}"
            for n, target in enumerate(fleet.targets, 1)
        }
        return replaced((PROXIES / "haproxy.cfg").read_text(), {"127.0.0.1:50050": self.target} | servers | changes)

    def command(self, folder: Path) -> list[str]:
        """Return what runs it in the foreground."""
        return [tool("haproxy"), "-db", "-f", str(self._file)]


class Nginx(Proxy):
    """nginx, which leaves out a replica that refuses connections, or that it is told is `down`."""

    def configuration(self, fleet: Fleet, folder: Path, changes: dict[str, str]) -> str:
        """Return the shipped file with other addresses in it, and folders that whoever runs the tests may write to."""
        servers = {f"10.0.0.1{n}:50051": target for n, target in enumerate(fleet.targets, 1)}
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        own = {"access_log off;": "access_log off; " + " ".join(f"{kind}_temp_path {folder};" for kind in kinds)}
        own["/run/nginx.pid"] = str(folder / "nginx.pid")
        return replaced(
            (PROXIES / "nginx.conf").read_text(), {"127.0.0.1:50050": self.target} | servers | own | changes
        )

    def command(self, folder: Path) -> list[str]:
        """Return what runs it in the foreground."""
        return [tool("nginx"), "-p", str(folder), "-c", str(self._file), "-g", "daemon off;"]

    def prepare_to_drain(self, place: int) -> None:
        """Mark a replica `down`, reload, and wait until no worker is left that does not know."""
        lines = self._text.splitlines()
        (at,) = [n for n, line in enumerate(lines) if line.lstrip().startswith(f"server {HOSTS[place]}:")]
        lines[at] = lines[at].replace(";", " down;")
        self._file.write_text("\n".join(lines))
        self.reload()

    def reload(self) -> None:
        """Read the file anew, and wait until all workers are new."""
        old = self._workers()
        os.kill(self.process.pid, signal.SIGHUP)
        wait_for(lambda: not old & self._workers() and self._workers(), "new workers")

    def restore(self) -> None:
        """Mark none `down`."""
        self._file.write_text(self._text)
        self.reload()

    def _workers(self) -> set[str]:
        pid = self.process.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


WAYS = {"addresses": Addresses, "dns": Dns, "haproxy": Haproxy, "nginx": Nginx}
