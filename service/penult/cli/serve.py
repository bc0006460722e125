"""`penult serve`: one server process, or several."""

import argparse
import os
import signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult serve`."""
    # OpenBLAS's threads would spin beside the model's, and took half of the CPU time. OpenBLAS reads this when NumPy is
    # first imported, which the configuration does.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from penult.service.config import ServeConfig

    ServeConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal; return the exit code."""
    # Until the server sets its own handlers: process 1 of a container ignores SIGTERM, and SIGHUP ends a process.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from penult.service.config import ServeConfig

    config = ServeConfig.load(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # keep gRPC's core from logging
    if config.workers > 1:
        from penult.service.process.supervisor import supervise

        return supervise(config)
    from penult.service.process.server import serve

    return serve(config)
