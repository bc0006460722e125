"""A small load generator for bench/gpu.py: the same request over and over, from several processes, closed or open loop.

Requests are bytes made once, answers stay bytes: a client costs as little as Python and gRPC let it. drive() starts the
processes; each of them is this file, run with one JSON argument.
"""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np

from penult.v1 import penult_pb2 as pb

METHOD = "/penult.v1.PenultService/Classify"
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own per channel
]
# An open loop that nobody answers stops here instead of filling the memory.
MOST_UNDER_WAY = 2000


@dataclass(frozen=True)
class Spec:
    """What one process sends: a file of request bytes with `images` in it, `in_flight` at a time, for `seconds`.

    As many connections are open as requests are in flight: the kernel gives each to one of the server's fronts.
    `rate` is requests per second at even intervals (an open loop), the first after `phase` of an interval; 0 sends the
    next when one is answered.
    """

    target: str
    payload: str
    images: int
    in_flight: int
    seconds: float
    rate: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True)
class Load:
    """What came back: images and requests per second, errors, and latencies in ms, from when a request was due."""

    images_per_s: float
    requests_per_s: float
    errors: int
    p50_ms: float
    p99_ms: float
    requests: int


def drive(spec: Spec, processes: int) -> Load:
    """Run a spec in several processes that begin together; `in_flight` is each one's, `rate` is shared among them."""
    # Together their requests come evenly, not in bursts of one from each.
    shares = [asdict(spec) | {"rate": spec.rate / processes, "phase": n / processes} for n in range(processes)]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(share)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for share in shares
    ]
    try:
        for worker in workers:  # each says when its connection is up
            if worker.stdout.readline() != "up\n":
                raise RuntimeError("a load process failed; its error is above")
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        answers = [json.loads(worker.communicate(timeout=spec.seconds + 120)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    latencies = np.concatenate([answer["latencies_ms"] for answer in answers])
    rate = sum(len(answer["latencies_ms"]) / answer["seconds"] for answer in answers)
    p50, p99 = np.percentile(latencies, [50, 99]) if len(latencies) else (float("nan"),) * 2
    errors = sum(answer["errors"] for answer in answers)
    return Load(rate * spec.images, rate, errors, float(p50), float(p99), len(latencies))


async def work(spec: Spec) -> dict[str, object]:
    payload = Path(spec.payload).read_bytes()
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(spec.target, options=OPTIONS) for _ in range(spec.in_flight)]
        calls = [(await stack.enter_async_context(channel)).unary_unary(METHOD) for channel in opened]
        for call in calls:
            check(await call(payload, timeout=120), spec.images)
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        latencies: list[float] = []
        errors = 0

        async def ask(due: float, number: int) -> None:
            nonlocal errors
            try:
                await calls[number % len(calls)](payload, timeout=60)
                latencies.append(1000 * (time.perf_counter() - due))
            except grpc.aio.AioRpcError:
                errors += 1

        started = time.perf_counter()
        await (open_loop(spec, ask) if spec.rate else closed_loop(spec, ask))
        return {"latencies_ms": latencies, "errors": errors, "seconds": time.perf_counter() - started}


async def closed_loop(spec: Spec, ask) -> None:
    until = time.perf_counter() + spec.seconds

    async def one(number: int) -> None:
        while time.perf_counter() < until:
            await ask(time.perf_counter(), number)

    await asyncio.gather(*(one(number) for number in range(spec.in_flight)))


async def open_loop(spec: Spec, ask) -> None:
    started = time.perf_counter()
    under_way: set[asyncio.Task[None]] = set()
    for number in range(max(1, int(spec.rate * spec.seconds))):
        due = started + (number + spec.phase) / spec.rate
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        if len(under_way) >= MOST_UNDER_WAY:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(ask(due, number))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


def check(answer: bytes, images: int) -> None:
    """Exit unless every image of the first answer was classified: a fast error is no rate."""
    outcomes = [result.WhichOneof("outcome") for result in pb.ClassifyResponse.FromString(answer).results]
    if outcomes != ["classification"] * images:
        sys.exit(f"the service answered {outcomes[:3]} … to {images} images")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(work(Spec(**json.loads(sys.argv[1]))))))
