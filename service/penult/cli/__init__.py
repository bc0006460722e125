"""The command line: one file per verb that is more than a call, and a table from verbs to functions.

What a verb needs is imported when it runs, so that --help is quick everywhere.
"""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from penult.bundle.refusals import refusal
from penult.cli.parser import Parser
from penult.extras import how_to_install
from penult.interrupts import Interrupts

_SERVE, _EXPORT = ("serve,cpu",), ("export",)
# The extras that hold each library, any one of which will do.
_EXTRAS: dict[str, tuple[str, ...]] = {
    "cryptography": _SERVE,
    "torch": _EXPORT, "torchvision": _EXPORT, "matplotlib": _EXPORT, "onnx": _EXPORT, "tqdm": _EXPORT,
    "jinja2": _EXPORT, "onnxruntime": ("serve,cpu", "serve,gpu"), "PIL": _SERVE, "starlette": _SERVE,
    "uvicorn": _SERVE, "prometheus_client": _SERVE, "grpc_health": _SERVE, "grpc_reflection": _SERVE,
    "sklearn": _EXPORT, "faiss": _SERVE, "pyarrow": ("parquet",),
}  # fmt: skip


# These do more at Ctrl-C than end: a server answers what it has accepted, and a measurement is reported.
_HANDLE_SIGINT = ("serve", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, 1 (it failed, with one line why) or 2 (the command line is wrong).

    As the command of a process, with `argv` None, Ctrl-C ends the process at once, with code 1.
    """
    arguments = _parse(argv)
    interrupts = Interrupts(_interrupted(arguments))
    if argv is not None or arguments.verb in _HANDLE_SIGINT:
        return _run(arguments, interrupts)
    with interrupts:
        return _run(arguments, interrupts)


def _interrupted(arguments: argparse.Namespace) -> str:
    """Return what to say after a Ctrl-C; nothing in the processes beside the first, under torchrun."""
    if arguments.verb == "train" and os.environ.get("RANK", "0") != "0":
        return ""
    is_resumable = arguments.verb == "train" and not getattr(arguments, "dry_run", False)
    return "penult: interrupted" + ("; --resume goes on from the last epoch" if is_resumable else "")


def _run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    try:
        return int(_function(arguments.run)(arguments))
    except KeyboardInterrupt:
        interrupts.tell()
        return 1
    except BrokenPipeError:  # `| head` has seen enough; the interpreter's last flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return fail(f"penult {arguments.verb} needs {error.name}: {how_to_install(*extra)}")
    except Exception as error:
        # The rooms' errors carry a line, and what the disk refuses gets one; anything else is a bug and shows itself.
        message = getattr(error, "message", None) or refusal(error)
        if message is None:
            raise
        return fail(message)


def fail(line: str) -> int:
    """Print one line of error; return exit code 1."""
    print(f"penult: {line}", file=sys.stderr)
    return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="penult", description="The layer before last, served: labelled photos to answers over gRPC.")
    parser.add_argument("--version", action="version", version=f"penult {importlib.metadata.version('penult')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted, chosen = (list(sys.argv[1:] if argv is None else argv) or [""])[0], parser
    for name, (help_, add_arguments, run) in _VERBS.items():
        verb = verbs.add_parser(name, help=help_, description=help_)
        verb.set_defaults(run=run)
        if name == wanted:  # only this verb's options are needed, and some come from its own room
            _function(add_arguments)(verb)
            chosen = verb
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen.refuse_unknown(unknown)
    return arguments


def _function(path: str) -> Any:
    """Return the function that "module:name" names, or "module:Class.name"."""
    module, _, name = path.partition(":")
    return attrgetter(name)(importlib.import_module(module))


# What each verb does in a line, what adds its flags, and what runs it.
_VERBS = {
    "train": (
        "Fine-tune on a folder of labelled photos and publish a checked bundle.",
        "penult.export.config.train:TrainSettings.add_arguments",
        "penult.cli.train:run",
    ),
    "svm": (
        "Fit a new SVM, for the same classes or others, as a model's next version.",
        "penult.export.config.refit:RefitSettings.add_arguments",
        "penult.cli.svm:run",
    ),
    "quantize": (
        "Publish a model in int8 (for CPUs) or float16 (for GPUs) as the next version, if it stays as accurate.",
        "penult.export.config.quantize:QuantizeSettings.add_arguments",
        "penult.cli.quantize:run",
    ),
    "check": (
        "Check a bundle: signature, digests, formats, golden answers.",
        "penult.cli.check_sign:add_check_arguments",
        "penult.cli.check_sign:check",
    ),
    "sign": (
        "Make a key, and sign a bundle with it.",
        "penult.cli.check_sign:add_sign_arguments",
        "penult.cli.check_sign:sign",
    ),
    "token": (
        "Make a bearer token for callers of a server.",
        "penult.service.auth.tokens:add_token_arguments",
        "penult.service.auth.tokens:make_token",
    ),
    "serve": (
        "Serve the models of a repository over gRPC.",
        "penult.cli.serve:add_arguments",
        "penult.cli.serve:run",
    ),
    "classify": (
        "Name photos with a running server.",
        "penult.cli.classify:add_classify_arguments",
        "penult.cli.classify:classify",
    ),
    "lookup": (
        "Find the stored items nearest to photos.",
        "penult.cli.lookup:add_lookup_arguments",
        "penult.cli.lookup:lookup",
    ),
    "index": (
        "Fill, list, export and tend collections of stored items.",
        "penult.cli.index:add_arguments",
        "penult.cli.index:run",
    ),
    "describe": (
        "Print the descriptors of photos from a running server.",
        "penult.cli.classify:add_describe_arguments",
        "penult.cli.classify:describe",
    ),
    "bench": (
        "Put load on a running server and measure it, or --tune its settings.",
        "penult.bench.settings:add_arguments",
        "penult.cli.bench:run",
    ),
}
