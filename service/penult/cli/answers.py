"""Answers about images as tables and as JSON: what classify, describe and lookup share."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from penult.client.types import ItemFailure
from penult.console import print_table


def error_cell(failure: ItemFailure) -> str:
    """Return why an image has no answer, for a table."""
    return f"{failure.code}: {failure.message}"


def failed(image: str, failure: Any) -> dict[str, Any]:
    """Return an image that has no answer, for JSON."""
    return {"image": image, "error": {"code": failure.code, "reason": failure.reason, "message": failure.message}}


def last_answer(answers: Sequence[Any]) -> Any:
    """Return the last answer of a server, or the last of all if no image could be read."""
    return next((answer for answer in reversed(answers) if answer.fingerprint), answers[-1])


def print_answers(
    arguments: argparse.Namespace,
    answers: Sequence[Any],
    header: list[str],
    rows: list[list[str]],
    values: list[Any],
    **more: str,
) -> int:
    """Print a table, or JSON; return 1 if any image failed."""
    last = last_answer(answers)
    versions = sorted({answer.version for answer in answers if answer.fingerprint})
    if arguments.json:
        if len(versions) > 1:  # the server loaded a new version meanwhile
            values = [value | {"version": a.version} for value, a in zip(values, answers, strict=True)]
        print(json.dumps({"model": last.model, "version": last.version, **more, "results": values}))
    else:
        print_table(header, rows)
        if versions:  # none if no image could be read, so that no request was sent
            named = " and ".join(map(str, versions))
            print(f"model {last.model} version {named}" + "".join(f", {k} {v}" for k, v in more.items()))
    return 1 if any("error" in value for value in values) else 0
