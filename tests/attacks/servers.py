"""A real server for attacks: its model is instant, its memory limited, and what it took can be read from outside."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from penult.bundle.formats import FORMATS
from penult.oip import grpc_service_pb2_grpc
from penult.v1 import penult_pb2_grpc

MEMORY_BYTES = 1536 << 20


@dataclass(frozen=True)
class Victim:
    """A server under attack."""

    target: str
    http: str
    pid: int

    def status(self, name: str) -> int:
        """A line of /proc/PID/status, in MiB where it is a size."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        value = next(line for line in lines if line.startswith(f"{name}:")).split()
        return int(value[1]) // 1024 if value[-1] == "kB" else int(value[1])


@pytest.fixture(scope="module")
def victim(publish_brightness, start_server, tmp_path_factory) -> Iterator[Victim]:
    """A server that may not write to more than 1.5 GiB of memory of its own.

    RLIMIT_DATA counts what a process may write to, whether it has touched it or not, and so bounds its resident memory
    from above. RLIMIT_AS would count mapped libraries and reserved addresses too, of which onnxruntime's are gigabytes.
    Beyond the limit an allocation fails, as it would not in a container: there the kernel kills the process, which a
    test on shared machines could not tell from other troubles.
    """
    root = tmp_path_factory.mktemp("attacked")
    publish_brightness(root)
    formats = ",".join(kind.lower() for kind in FORMATS)
    running = start_server(
        root, "--image-formats", formats, "--http", "--lookup", str(tmp_path_factory.mktemp("collections"))
    )
    resource.prlimit(running.process.pid, resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    found = Victim(running.target, running.http, running.process.pid)
    yield found
    assert running.process.poll() is None, running.log.read_text()[-4000:]


@pytest.fixture(scope="module")
def channel(victim) -> Iterator[grpc.Channel]:
    """A connection to it that may send and receive whole messages."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(victim.target, options=options) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel) -> penult_pb2_grpc.PenultServiceStub:
    """penult.v1's methods."""
    return penult_pb2_grpc.PenultServiceStub(channel)


@pytest.fixture(scope="module")
def oip_stub(channel) -> grpc_service_pb2_grpc.GRPCInferenceServiceStub:
    """The Open Inference Protocol's methods."""
    return grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
