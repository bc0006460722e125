"""What watching costs, and whether it counts right.

    python bench/monitoring.py [--model resnet18] [--rounds 5] [--seconds 8] [--requests 10000]

Three servers of a bench bundle side by side (bench/prepare.py): as it is; with every metric replaced by one that does
nothing; and with an access log line of JSON per request. Rounds are interleaved; the figure is CPU time of the server's
process per photo. Then a scrape's time, and so many mixed requests whose codes must be counted alike on both sides.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import prepare
from served import CALLERS, Served, compare

from penult.client import Client, RequestFailed

SCRAPES = 50
OFF = "off"
OWN = [sys.executable, __file__]


class Nothing:
    """A metric that does nothing, as fast as can be."""

    def __init__(self, *_: object, **__: object) -> None:
        self.act = lambda *_, **__: None
        self.inc = self.dec = self.set = self.observe = self.remove = self.act

    def labels(self, *_: str) -> "Nothing":
        """Return the same."""
        return self

    def time(self) -> "Nothing":
        """Return the same, to be entered."""
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def serve(arguments: list[str], is_off: bool) -> None:
    """Be a server."""
    from penult import cli
    from penult.service.observability import metrics

    if is_off:
        metrics.Counter = metrics.Gauge = metrics.Histogram = Nothing
    sys.exit(cli.main(["serve", *arguments]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--requests", type=int, default=10_000)
    wanted = parser.parse_args()
    prepare.prepare_one(wanted.model)
    photos = prepare.jpegs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(prepare.MODELS / wanted.model, folder / "models" / wanted.model)
        logged = ("--access-log", "1", "--log-format", "json")
        servers = {
            OFF: Served([*OWN, "serve-off"], folder / "models", folder / "off"),
            "metrics": Served([*OWN, "serve"], folder / "models", folder / "on"),
            "metrics and a log line each": Served([*OWN, "serve"], folder / "models", folder / "logged", *logged),
        }
        try:
            compare(servers, OFF, photos, wanted.rounds, wanted.seconds)
            scrapes(servers["metrics"])
            counts(servers["metrics"], photos, wanted.requests)
        finally:
            for server in servers.values():
                server.stop()


def scrapes(server: Served) -> None:
    """Print how long a scrape takes."""
    taken = []
    with httpx.Client() as client:
        for _ in range(SCRAPES):
            started = time.perf_counter()
            body = client.get(f"{server.http}/metrics").content
            taken.append(1000 * (time.perf_counter() - started))
    print(f"a scrape: {median(taken):.1f} ms, at most {max(taken):.1f} ms, {len(body):,} bytes; goal 20 ms", flush=True)


def counts(server: Served, photos: list[bytes], requests: int) -> None:
    """Send mixed requests and compare what each side counted, by code."""
    before, told = by_code(server), Counter()
    lock = threading.Lock()

    def ask(caller: int) -> None:
        with Client(server.target, retries=0) as client:
            for number in range(caller, requests, CALLERS):
                code = one(client, photos, number)
                with lock:
                    told[code] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = by_code(server) - before
    is_right = "equal on both sides" if counted == told else f"the clients counted {dict(told)}"
    print(f"{requests} mixed requests: {dict(counted)}; {is_right}")
    sys.exit(counted != told)


def one(client: Client, photos: list[bytes], number: int) -> str:
    """Send the request of a number; return its code."""
    try:
        match number % 8:
            case 0:
                client.classify([photos[0]], model="absent")
            case 1:
                client.classify([b"no photo"])
            case 2:
                client.get_model()
            case 3:
                client.describe([photos[number % len(photos)]])
            case 4:
                client.list_collections()
            case 5:
                client.score(np.zeros((1, 3), np.float32))
            case _:
                client.classify([photos[number % len(photos)]])
    except RequestFailed as error:
        return error.code
    return "OK"


def by_code(server: Served) -> Counter:
    """Return what the server has counted, by code."""
    found: Counter = Counter()
    for line in httpx.get(f"{server.http}/metrics").text.splitlines():
        if line.startswith("penult_requests_total{"):
            found[line.partition('code="')[2].partition('"')[0]] += int(float(line.rpartition(" ")[2]))
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("serve"):
        serve(sys.argv[2:], is_off=sys.argv[1] == "serve-off")
    main()
