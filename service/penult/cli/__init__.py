"""The command line: a module per command, each with add_arguments(parser) and run(arguments).

A command's module is imported when that command is chosen, so that --help starts fast.
"""

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from penult.bundle.refusals import refusal
from penult.cli.parser import Parser
from penult.console import print_error
from penult.extras import how_to_install
from penult.interrupts import Interrupts

_SERVE, _EXPORT = ("serve,cpu",), ("export",)
# The extras that hold each library, any one of which will do.
_EXTRAS: dict[str, tuple[str, ...]] = {
    "cryptography": _SERVE,
    "torch": _EXPORT, "torchvision": _EXPORT, "timm": ("export,timm",), "transformers": ("export,huggingface",),
    "safetensors": _EXPORT, "matplotlib": _EXPORT, "onnx": _EXPORT, "tqdm": _EXPORT,
    "jinja2": _EXPORT, "onnxruntime": ("serve,cpu", "serve,gpu"), "PIL": _SERVE, "starlette": _SERVE,
    "uvicorn": _SERVE, "prometheus_client": _SERVE, "grpc_health": _SERVE, "grpc_reflection": _SERVE,
    "sklearn": _EXPORT, "faiss": _SERVE, "pyarrow": ("parquet",), "tomlkit": _SERVE,
}  # fmt: skip

# What each command does. Its module is penult.cli.NAME.
_COMMANDS = {
    "inspect": "Find suspect labels, copies and weak photos before training.",
    "train": "Fine-tune on a folder of labelled photos and publish a bundle.",
    "label": "Label photos on a page, the most useful ones first.",
    "svm": "Fit a new SVM on a model's descriptors, as its next version.",
    "calibrate": "Certify how often a model's answers are wrong, on new photos.",
    "quantize": "Publish a model as int8 or float16, if it stays as accurate.",
    "import": "Publish a model that was trained elsewhere as a bundle.",
    "networks": "List the networks that training and labelling can start from.",
    "compare": "Compare two versions of a model on the same labelled photos.",
    "check": "Verify a bundle: signature, digests, formats, golden answers.",
    "sign": "Create a signing key, or sign a bundle.",
    "token": "Create a bearer token for callers of a server.",
    "serve": "Serve the models of a repository over gRPC.",
    "classify": "Classify photos with a running server.",
    "lookup": "Find the stored items nearest to photos.",
    "index": "Manage collections of stored items.",
    "describe": "Print or store the descriptors of photos from a running server.",
    "bench": "Measure a running server under load, or tune its settings.",
}
# These do more at Ctrl-C than end: a server drains, a measurement is reported, and labelling prints what comes next.
_HANDLE_SIGINT = ("serve", "bench", "label")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The command line; None: that of the process, which Ctrl-C then ends at once, with code 1.

    Returns:
        0, 1 (the command failed, with one line why) or 2 (the command line is wrong).
    """
    arguments = _parse(argv)
    interrupts = Interrupts(_interrupted(arguments))
    if argv is not None or arguments.command in _HANDLE_SIGINT:
        return _run(arguments, interrupts)
    with interrupts:
        return _run(arguments, interrupts)


def _interrupted(arguments: argparse.Namespace) -> str:
    """Return what to print after Ctrl-C; nothing in all processes of torchrun but the first."""
    if arguments.command == "train" and os.environ.get("RANK", "0") != "0":
        return ""
    is_resumable = arguments.command == "train" and not getattr(arguments, "dry_run", False)
    return "penult: interrupted" + ("; --resume goes on from the last epoch" if is_resumable else "")


def _run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    try:
        return int(_module(arguments.command).run(arguments))
    except KeyboardInterrupt:
        interrupts.report()
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has closed; the interpreter's last flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return print_error(f"penult {arguments.command} needs {error.name}: {how_to_install(*extra)}")
    except Exception as error:
        # Our own errors carry one line, and so do the operating system's. Any other error is a bug: show its traceback.
        message = getattr(error, "message", None) or refusal(error)
        if message is None:
            raise
        return print_error(message)


class _PrintVersion(argparse.Action):
    """Print the version and exit. It imports importlib.metadata here, which would double the start of every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"penult {version('penult')}")
        parser.exit()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="penult", description="Train image classifiers on labelled photos and serve them over gRPC.")
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted, chosen = (list(sys.argv[1:] if argv is None else argv) or [""])[0], parser
    for name, help_ in _COMMANDS.items():
        command = commands.add_parser(name, help=help_, description=help_)
        if name == wanted:  # only this command's options are needed
            _module(name).add_arguments(command)
            chosen = command
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen.refuse_unknown(unknown)
    return arguments


def _module(command: str) -> Any:
    # The module of `import` cannot have the command's name.
    return importlib.import_module(f"penult.cli.{command}{'_' * keyword.iskeyword(command)}")
