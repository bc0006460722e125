"""What `penult train`, `svm` and `quantize` print of the version that they published."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def publish_next(
    arguments: argparse.Namespace, publish: Callable[[], Any], told: Callable[[Any], dict[str, object]]
) -> int:
    """Publish a further version of a bundle, and print what it is and how long that took; `told` picks metrics."""
    started = time.monotonic()
    result = publish()
    seconds = round(time.monotonic() - started, 1)
    code = show_published(arguments, result, **told(result.metrics), seconds=seconds)
    print(f"done in {seconds} s", file=sys.stderr)
    return code


def check_given(settings: Any) -> None:
    """Refuse a model or a folder that is not there, or cannot be learnt from, before slow libraries are imported."""
    from penult.bundle.reader import choose_version
    from penult.export.data import check_folders

    choose_version(settings.model, settings.version)
    check_folders(settings.data, settings.model, settings.val, settings.test)


def show_published(arguments: argparse.Namespace, result: Any, **more: object) -> int:
    """Print what was published and how good it is on the test photos."""
    test, default = result.metrics["test"], result.metrics["default_scorer"]
    if arguments.json:
        print(json.dumps(as_json(result, **more)))
        return 0
    rows = [[name, f"{m['accuracy']:.1%}", "{:.1%} – {:.1%}".format(*m["accuracy_95"]), f"{m['macro_f1']:.3f}"]
            for name, m in test.items()]  # fmt: skip
    from penult.client.console import print_table

    print_table(["scorer", "accuracy", "95 % interval", "macro-F1"], rows)
    print(f"on {test[default]['photos']} test photos; default scorer: {default}")
    print(f"bundle: {result.folder}\nreport: {result.folder / 'report' / 'index.html'}")
    return 0


def as_json(result: Any, **more: object) -> dict[str, object]:
    """Return what --json prints of a published version."""
    default = result.metrics["default_scorer"]
    return {"bundle": str(result.folder), "default_scorer": default, "test": result.metrics["test"], **more}
