"""What `penult train`, `svm` and `quantize` print of the version that they published, and the next steps."""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penult.console import print_table, say

_NOVELTY = "novelty"


def publish_next(
    arguments: argparse.Namespace, publish: Callable[[], Any], pick: Callable[[Any], dict[str, object]]
) -> int:
    """Publish another version of a bundle; print its metrics and the time taken.

    Args:
        arguments: The command line.
        publish: Publishes, and returns the bundle's folder and metrics.
        pick: Returns further metrics for --json.
    """
    started = time.monotonic()
    result = publish()
    seconds = round(time.monotonic() - started, 1)
    code = print_last(arguments, result, **pick(result.metrics), seconds=seconds)
    say(f"done in {seconds} s")
    return code


def print_last(arguments: argparse.Namespace, result: Any, **more: object) -> int:
    """Print what was published, and the next steps."""
    code = print_published(arguments, result, **more)
    if not arguments.json:
        print("\n".join(next_steps(result.folder, arguments.data)))
    return code


def print_published(arguments: argparse.Namespace, result: Any, **more: object) -> int:
    """Print what was published and how good it is on the test photos."""
    test, default = result.metrics["test"], result.metrics["default_scorer"]
    if arguments.json:
        print(json.dumps(as_json(result, **more)))
        return 0
    print_table(*(_novelty_table if default == _NOVELTY else _table)(result.metrics))
    print(f"on {test[default]['photos']} test photos; default scorer: {default}")
    for sentence in (*_choice(result.metrics), *_abstaining(result.metrics), *_cautions(result.metrics)):
        print(sentence)
    print(f"bundle: {result.folder}")
    print(f"report: {link(result.folder / 'report' / 'index.html')}")
    return 0


def next_steps(bundle: Path, photos: Path | None) -> list[str]:
    """Return the commands to run next on a bundle models/NAME/VERSION, with a photo below `photos` as the example."""
    from penult.bundle.naming import model_name, parent
    from penult.service.config import ServeConfig

    config, program = ServeConfig(), _program()
    name, repository = model_name(parent(bundle)), parent(parent(bundle))
    is_default = repository.resolve() == config.models.resolve()
    serve = f"{program} serve" if is_default else f"{program} serve --models {shlex.quote(str(repository))}"
    example = photos and first_photo(photos)
    photo = shlex.quote(str(example)) if example else "PHOTO"
    return [
        f"serve:  {serve}",
        f"page:   http://{config.host}:{config.metrics_port}/ while it serves: drop a photo on it",
        f"ask:    {program} classify --model {name} {photo}",
    ]


def link(file: Path) -> str:
    """Return a file's URL, which terminals and browsers open."""
    return file.resolve().as_uri()


def first_photo(folder: Path) -> Path | None:
    """Return the first photo below a folder, or beside a label file; None if there is none.

    If the folder has a test split, the photo is of that.
    """
    from penult.folders.names import split_of
    from penult.folders.walk import walk

    folder = folder if folder.is_dir() else folder.parent
    tests = sorted(each for each in folder.iterdir() if split_of(each.name) == "test") if folder.is_dir() else []
    found = (folder / entry.path for inside in (*(each.name for each in tests), "") for entry in walk(folder, inside))
    return next(found, None)


def _program() -> str:
    """Return how to call this program: "penult", or the path that was typed."""
    typed, found = Path(sys.argv[0]), shutil.which("penult")
    if typed.name != "penult" or (found and typed.exists() and typed.samefile(found)):
        return "penult"
    return shlex.quote(str(typed))


def _table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows; with few photos the interval replaces the accuracy."""
    from penult.export.evaluation.accuracy import between, counted, decimal, stated

    head = ["scorer", "right", "accuracy", "95 % interval", "validation", "macro-F1"]
    val = metrics.get("val", {})
    return head, [
        [name, counted(m), stated(m), between(*m["accuracy_95"]), counted(val[name]) if name in val else "",
         decimal(m["macro_f1"], m)]
        for name, m in metrics["test"].items()
    ]  # fmt: skip


def _novelty_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows for a model of one class: a row per measure."""
    from penult.export.evaluation.accuracy import between

    novelty, head = metrics["novelty"], ["measure", "false alarms", "95 % interval"]
    rows = [
        [name + " (served)" * (name == novelty["measure"]), f"{m['test']['false_alarms']} of {m['test']['photos']}",
         between(*m["test"]["share_95"])]
        for name, m in novelty["measures"].items()
    ]  # fmt: skip
    if novelty["outliers"]:
        head += ["outliers found", "AUROC", "95 % interval"]
        for row, m in zip(rows, novelty["measures"].values(), strict=True):
            low, high = m["auroc_95"]
            row += [f"{m['outliers_found']} of {novelty['outliers']}", f"{m['auroc']:.3f}", f"{low:.3f}–{high:.3f}"]
    return head, rows


def _choice(metrics: dict[str, Any]) -> list[str]:
    """Return why the default scorer is the default; nothing if there was no choice."""
    return [metrics["choice"]["sentence"]] if "choice" in metrics else []


def _abstaining(metrics: dict[str, Any]) -> list[str]:
    """Return what was certified for --max-error, and what was not."""
    found: list[str] = metrics.get("abstaining", {}).get("sentences", [])
    return found


def _cautions(metrics: dict[str, Any]) -> list[str]:
    """Return warnings about the metrics: too few photos, or test and validation that disagree."""
    from penult.export.evaluation.accuracy import caution

    if metrics["default_scorer"] == _NOVELTY:
        from penult.export.evaluation.one_class_text import few_photos

        return [sentence for sentence in (few_photos(metrics["novelty"]),) if sentence]
    default = metrics["default_scorer"]
    found = metrics.get("test_against_validation", {}).get(default, {})
    return [sentence for sentence in (found.get("sentence", ""), caution(metrics["test"][default])) if sentence]


def as_json(result: Any, **more: object) -> dict[str, object]:
    """Return what --json prints of a published version."""
    metrics = result.metrics
    names: tuple[str, ...] = ("default_scorer", "choice", "test", "test_against_validation", "abstaining")
    if metrics["default_scorer"] == _NOVELTY:
        names = ("default_scorer", "test", "novelty")
    kept = {name: metrics[name] for name in names if name in metrics}
    return {"bundle": str(result.folder), **kept, "cautions": _cautions(metrics), **more}
