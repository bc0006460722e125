"""Runs a real Milvus that only this machine can reach, prints its port, and ends it when standard input ends.

Milvus listens on all interfaces, so it gets a network of its own, with nothing but loopback in it; a Unix socket leads
in, and a port of 127.0.0.1 leads to that. Run by an environment of its own (locks/milvus.txt), as root.

    python milvus_server.py            the outer half: starts the inner one with `unshare -n`
    python milvus_server.py FOLDER     the inner half
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until there are no more."""
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def lead_to(connect):
    """Return a handler that carries a connection to another."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect()
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # the end of everything
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    return handle


async def wait_for_end() -> None:
    """Return when standard input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def inner(folder: Path) -> None:
    """Start Milvus in this network, and lead the Unix socket to it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    from milvus import MilvusServer, MilvusServerConfig

    server = MilvusServer(MilvusServerConfig(data_dir=str(folder / "data")))
    try:
        await asyncio.to_thread(server.start)
        handler = lead_to(lambda: asyncio.open_connection("127.0.0.1", server.listen_port))
        async with await asyncio.start_unix_server(handler, folder / "socket"):
            print("ready", flush=True)
            await wait_for_end()
    finally:
        server.stop()


async def outer() -> None:
    """Start the inner half, and lead a port of 127.0.0.1 to it."""
    with tempfile.TemporaryDirectory(prefix="penult-milvus-", ignore_cleanup_errors=True) as folder:
        command = ["unshare", "-n", sys.executable, __file__, folder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:
                if line.strip() == "ready":
                    break
            else:
                raise SystemExit("milvus did not start")
            handler = lead_to(lambda: asyncio.open_unix_connection(Path(folder) / "socket"))
            async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
                print(server.sockets[0].getsockname()[1], flush=True)
                await wait_for_end()
        finally:
            process.stdin.close()
            process.wait(60)


asyncio.run(inner(Path(sys.argv[1])) if len(sys.argv) > 1 else outer())
