"""The command line: verbs only. What a verb needs is imported when it runs, so that --help is quick everywhere."""

import argparse
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from penult.bundle.refusals import refusal

_EXTRAS = {
    "cryptography": "serve,cpu",
    "torch": "export", "torchvision": "export", "matplotlib": "export", "onnx": "export", "tqdm": "export",
    "jinja2": "export", "onnxruntime": "serve,cpu] or penult[serve,gpu", "PIL": "serve,cpu", "starlette": "serve,cpu",
    "uvicorn": "serve,cpu", "prometheus_client": "serve,cpu", "grpc_health": "serve,cpu",
    "grpc_reflection": "serve,cpu", "sklearn": "export", "faiss": "serve,cpu", "pyarrow": "parquet",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, 1 (it failed, with one line why) or 2 (the command line is wrong)."""
    arguments = _parse(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except KeyboardInterrupt:
        hint = "; --resume goes on from the last epoch" if arguments.verb == "train" else ""
        return _fail(f"interrupted{hint}")
    except BrokenPipeError:  # `| head` has seen enough; the interpreter's last flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(f"penult {arguments.verb} needs {error.name}: pip install 'penult[{extra}]'")
    except Exception as error:
        # The rooms' errors carry a line, and what the disk refuses gets one; anything else is a bug and shows itself.
        message = getattr(error, "message", None) or refusal(error)
        if message is None:
            raise
        return _fail(message)


def _fail(line: str) -> int:
    print(f"penult: {line}", file=sys.stderr)
    return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="penult", description="The layer before last, served: labelled photos to answers over gRPC."
    )
    parser.add_argument("--version", action="version", version=f"penult {importlib.metadata.version('penult')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = (list(sys.argv[1:] if argv is None else argv) or [""])[0]
    for name, (help_, add_arguments, run) in _VERBS.items():
        verb = verbs.add_parser(name, help=help_, description=help_)
        verb.set_defaults(run=run)
        if name == wanted:  # only this verb's options are needed, and some come from its own room
            add_arguments(verb)
    return parser.parse_args(argv)


# -- train, svm, quantize, check, sign, token, serve -------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.export.settings import add_arguments

    add_arguments(parser)


def _train(arguments: argparse.Namespace) -> int:
    from penult.export.settings import from_arguments
    from penult.heap import keep_all_blocks

    settings = from_arguments(arguments)
    keep_all_blocks()  # every step takes and frees the same activations
    print("loading PyTorch", file=sys.stderr)
    if settings.dry_run:
        from penult.export.plan import show

        show(settings, arguments.json)
        return 0
    if settings.sweep != "no":
        return _sweep(arguments, settings)
    from penult.export.run import train

    result = train(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under torchrun, the first process speaks for all
    return _add_int8(arguments, settings, result) if settings.int8 else _show_trained(arguments, result)


def _add_int8(arguments: argparse.Namespace, settings: Any, result: Any) -> int:
    """Publish the int8 version too; the float one stays, whatever comes. Return 1 where int8 is refused."""
    from penult.bundle.errors import PenultError
    from penult.export.lower_precision import after_training

    if not arguments.json:
        _show_trained(arguments, result)
    try:
        added = after_training(settings, int(result.folder.name))
    except PenultError as error:
        if arguments.json:
            _show_trained(arguments, result, int8={"refused": error.message})
        return _fail(f"version {result.folder.name} is published, in float; {error.message}")
    if arguments.json:
        return _show_trained(arguments, result, int8=_trained_json(added, **added.metrics["int8"]))
    return _show_trained(arguments, added)


def _svm_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.export.refit_settings import add_arguments

    add_arguments(parser)


def _svm(arguments: argparse.Namespace) -> int:
    from penult.export.refit_settings import from_arguments

    settings = from_arguments(arguments)

    def publish() -> Any:
        if settings.from_collection:
            return _refit_stored(settings)
        from penult.export.refit import refit

        return refit(settings)

    return _publish_next(arguments, publish, lambda metrics: {"kernel": metrics["svm"]["kernel"]})


def _refit_stored(settings: Any) -> Any:
    """Fetch a collection's labelled items from a server, and fit on them."""
    from penult.client import DEFAULT_TARGET, Client
    from penult.client.labelled import labelled_items
    from penult.client.security import Security

    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    with Client(target, security=Security.from_environment()) as client:
        told, items = labelled_items(client, settings.from_collection)
    from penult.export.refit_stored import Stored, refit_stored

    ids, labels, descriptors = items
    return refit_stored(settings, Stored(told.name, told.fingerprint, ids, labels, descriptors))


def _quantize_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.export.quantize_settings import add_arguments

    add_arguments(parser)


def _quantize(arguments: argparse.Namespace) -> int:
    from penult.export.quantize_settings import from_arguments

    settings = from_arguments(arguments)

    def publish() -> Any:
        from penult.export.lower_precision import quantize

        return quantize(settings)

    return _publish_next(arguments, publish, lambda metrics: {settings.to: metrics[settings.to]})


def _publish_next(
    arguments: argparse.Namespace, publish: Callable[[], Any], told: Callable[[Any], dict[str, object]]
) -> int:
    """Publish a further version of a bundle, and print what it is and how long that took; `told` picks metrics."""
    started = time.monotonic()
    result = publish()
    seconds = round(time.monotonic() - started, 1)
    code = _show_trained(arguments, result, **told(result.metrics), seconds=seconds)
    print(f"done in {seconds} s", file=sys.stderr)
    return code


def _show_trained(arguments: argparse.Namespace, result: Any, **more: object) -> int:
    """Print what was published and how good it is on the test photos."""
    test, default = result.metrics["test"], result.metrics["default_scorer"]
    if arguments.json:
        print(json.dumps(_trained_json(result, **more)))
        return 0
    rows = [[name, f"{m['accuracy']:.1%}", "{:.1%} – {:.1%}".format(*m["accuracy_95"]), f"{m['macro_f1']:.3f}"]
            for name, m in test.items()]  # fmt: skip
    from penult.client.verbs import print_table

    print_table(["scorer", "accuracy", "95 % interval", "macro-F1"], rows)
    print(f"on {test[default]['photos']} test photos; default scorer: {default}")
    print(f"bundle: {result.folder}\nreport: {result.folder / 'report' / 'index.html'}")
    return 0


def _trained_json(result: Any, **more: object) -> dict[str, object]:
    default = result.metrics["default_scorer"]
    return {"bundle": str(result.folder), "default_scorer": default, "test": result.metrics["test"], **more}


def _sweep(arguments: argparse.Namespace, settings: Any) -> int:
    from penult.export import sweep_view
    from penult.export.run import compare, sweep_folder

    sweep, folder = compare(settings), sweep_folder(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0
    if arguments.json:
        print(json.dumps({"sweep": sweep.kind, "folder": str(folder), "advice": sweep_view.advice(sweep),
                          "trials": [vars(outcome) for outcome in sweep.outcomes]}))  # fmt: skip
        return 0
    from penult.client.verbs import print_table

    print_table(["mode", sweep_view.AXES[sweep.kind], "validation", "test", "scorer"], sweep_view.table(sweep))
    print(f"{sweep_view.advice(sweep)}\npicture: {folder / 'sweep.png'}\ntable: {folder / 'table.csv'}")
    return 0


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.service.bundle_verbs import add_check_arguments

    add_check_arguments(parser)


def _check(arguments: argparse.Namespace) -> int:
    from penult.service.bundle_verbs import check

    return check(arguments)


def _sign_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.service.bundle_verbs import add_sign_arguments

    add_sign_arguments(parser)


def _sign(arguments: argparse.Namespace) -> int:
    from penult.service.bundle_verbs import sign

    return sign(arguments)


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.service.tokens import add_token_arguments

    add_token_arguments(parser)


def _token(arguments: argparse.Namespace) -> int:
    from penult.service.tokens import make_token

    return make_token(arguments)


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    # OpenBLAS's threads would spin beside the model's runs, and took half of the CPU time. It reads this once, when
    # NumPy is first imported, which the configuration does.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from penult.service.config import add_arguments

    add_arguments(parser)


def _serve(arguments: argparse.Namespace) -> int:
    # Until the server has its own: the first process of a container would not end by SIGTERM, and others by SIGHUP.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from penult.service.config import from_arguments

    config = from_arguments(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core would add its own lines to ours
    if config.fronts > 1:
        from penult.service.fronts import supervise

        return supervise(config)
    from penult.service.server import serve

    return serve(config)


# -- classify, describe, lookup, index, bench --------------------------------------------------------------------------


def _classify_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.client.verbs import add_classify_arguments

    add_classify_arguments(parser)


def _classify(arguments: argparse.Namespace) -> int:
    from penult.client.verbs import classify

    return classify(arguments)


def _describe_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.client.verbs import add_describe_arguments

    add_describe_arguments(parser)


def _describe(arguments: argparse.Namespace) -> int:
    from penult.client.verbs import describe

    return describe(arguments)


def _lookup_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.client.lookup_verb import add_lookup_arguments

    add_lookup_arguments(parser)


def _lookup(arguments: argparse.Namespace) -> int:
    from penult.client.lookup_verb import lookup

    return lookup(arguments)


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.client.index_verbs import add_index_arguments

    help_ = "Copy collections between stores, without a server; again where it was cut off."
    copy = add_index_arguments(parser).add_parser("copy", help=help_, description=help_)
    copy.add_argument("source", metavar="FROM", help="as --lookup: a folder, postgresql://…, milvus://…")
    copy.add_argument("target", metavar="TO")
    copy.add_argument("collections", metavar="COLLECTION", nargs="*", help="which (default: all)")
    copy.add_argument("--json", action="store_true", help="print the answer as JSON")


def _index(arguments: argparse.Namespace) -> int:
    if arguments.index_verb == "copy":
        return _copy(arguments)
    from penult.client.index_verbs import index

    return index(arguments)


def _copy(arguments: argparse.Namespace) -> int:
    from contextlib import closing

    from penult.client.many import Bar
    from penult.client.verbs import has_bar
    from penult.lookup.copying import copy_collection
    from penult.lookup.opening import open_store

    copied = {}
    with closing(open_store(arguments.source)) as source, closing(open_store(arguments.target)) as target:
        for name in arguments.collections or [spec.name for spec in source.specs()]:
            with Bar(source.open(name).stats().items, has_bar()) as bar:
                copied[name] = copy_collection(source, target, name, bar.add)
            if not arguments.json:
                print(f"{name}: {copied[name]} items copied, {target.open(name).stats().items} are there")
    if arguments.json:
        print(json.dumps({"copied": copied}))
    return 0


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from penult.bench.settings import add_arguments

    add_arguments(parser)


def _bench(arguments: argparse.Namespace) -> int:
    from penult.bench.settings import from_arguments

    settings = from_arguments(arguments)
    from penult.bench.run import bench

    return bench(settings)


_VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "train": ("Fine-tune on a folder of labelled photos and publish a checked bundle.", _train_arguments, _train),
    "svm": ("Fit a new SVM, for the same classes or others, as a model's next version.", _svm_arguments, _svm),
    "quantize": (
        "Publish a model in int8 (for CPUs) or float16 (for GPUs) as the next version, if it stays as accurate.",
        _quantize_arguments,
        _quantize,
    ),
    "check": ("Check a bundle: signature, digests, formats, golden answers.", _check_arguments, _check),
    "sign": ("Make a key, and vouch for a bundle with it.", _sign_arguments, _sign),
    "token": ("Make a bearer token for callers of a server.", _token_arguments, _token),
    "serve": ("Serve the models of a repository over gRPC.", _serve_arguments, _serve),
    "classify": ("Name photos with a running server.", _classify_arguments, _classify),
    "lookup": ("Find the stored items nearest to photos.", _lookup_arguments, _lookup),
    "index": ("Fill, list, export and tend collections of stored items.", _index_arguments, _index),
    "describe": ("Print the descriptors of photos from a running server.", _describe_arguments, _describe),
    "bench": ("Put load on a running server and measure it, or --tune its settings.", _bench_arguments, _bench),
}

if __name__ == "__main__":
    sys.exit(main())
