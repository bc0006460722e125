"""Read and write projects of Label Studio with one choice per image.

Exports are read in the formats JSON and JSON-MIN; tasks to import are written as JSON.

In JSON, a task has `data` with the image, and `annotations` with results of the type "choices". In JSON-MIN, it has the
fields `image` and `choice`. Tasks that are not annotated, or were skipped, are left out.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from penult.export.data.tables import Row, failed
from penult.folders.names import is_photo

# The names of the tags in Label Studio's template for image classification.
IMAGE, CHOICE = "image", "choice"
_UPLOAD = re.compile(r"[0-9a-f]{8}-")
_NOT_ONE = "give each image one label, as a choices control with choice=single does"


def read(path: Path) -> Iterator[Row]:
    """Yield a row for each annotated task; its number counts tasks from 1. Raises DataError."""
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its encoding or depth"
        raise failed(path, f"cannot be read as JSON ({where})", "export the project again") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise failed(path, "is no export of Label Studio, which is a list of tasks", "export as JSON or JSON-MIN")
    for number, task in enumerate(tasks, 1):
        data = task.get("data") if isinstance(task.get("data"), dict) else task
        labels = set(_choices(path, number, task))
        if len(labels) > 1:
            raise failed(path, f"several labels, {', '.join(map(repr, sorted(labels)))}", _NOT_ONE, number)
        if not labels:
            continue
        image = _image(path, number, data)
        split, group = (data[name] if isinstance(data.get(name), str) else "" for name in ("split", "group"))
        first, *elsewhere = _paths(image)
        yield Row(number, first, labels.pop(), split, group, tuple(elsewhere))


def _choices(path: Path, number: int, task: Mapping[str, Any]) -> Iterator[str]:
    """Yield every choice of a task's annotations."""
    if "annotations" not in task and "completions" not in task:
        yield from _strings(path, number, task.get(CHOICE))
        return
    for annotation in task.get("annotations") or task.get("completions") or ():
        try:
            if annotation.get("was_cancelled"):
                continue
            for result in annotation["result"]:
                if result["type"] == "choices":
                    yield from _strings(path, number, result["value"]["choices"])
        except (KeyError, TypeError, AttributeError) as error:
            raise failed(path, "a damaged annotation", "export the project again", number) from error


def _strings(path: Path, number: int, value: object) -> Iterator[str]:
    if isinstance(value, dict):
        value = value.get("choices")
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield each.strip()
        elif each is not None:
            raise failed(path, f"a choice that is no text, {each!r}", _NOT_ONE, number)


def _image(path: Path, number: int, data: Mapping[str, Any]) -> str:
    """Return the image of a task: its field image, or the only one that holds an image's name."""
    if isinstance(data.get(IMAGE), str):
        return str(data[IMAGE])
    named = [each for each in data.values() if isinstance(each, str) and is_photo(urlsplit(each).path)]
    if len(named) != 1:
        raise failed(path, "no image", "call the field of the task's data image", number)
    return named[0]


def _paths(image: str) -> list[str]:
    """Return where an image may be.

    Uploads get eight digits before the name. Local storage has the path in a query.
    """
    address = urlsplit(image)
    if address.scheme and address.netloc and not address.path.startswith("/data/"):
        return [image]
    given = parse_qs(address.query).get("d")
    parts = (given[0] if given else unquote(address.path)).strip("/").split("/")
    paths = ["/".join(parts[at:]) for at in range(len(parts))]
    name = _UPLOAD.sub("", parts[-1], count=1)
    return [*paths, name] if name != parts[-1] else paths


# -- writing ----------------------------------------------------------------------------------------------------------


def config(classes: Sequence[str]) -> str:
    """Return the labelling interface of a project, which tasks of task() belong to, as XML."""
    choices = "\n".join(f'    <Choice value="{html.escape(name)}"/>' for name in classes)
    return (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}"/>\n'
        f'  <Choices name="{CHOICE}" toName="{IMAGE}" choice="single" showInLine="true">\n{choices}\n  </Choices>\n'
        "</View>\n"
    )


def task(
    image: str, label: str | None, guess: tuple[str, float] | None, model: str, others: Mapping[str, str]
) -> dict[str, Any]:
    """Return a task to import.

    Args:
        image: The path below the folder that Label Studio serves local files from, its document root.
        label: The label, as an annotation; None: none yet.
        guess: A label that a model predicts, and its probability, as a prediction.
        model: What made the guess.
        others: Further fields of the task, such as split and group.
    """
    made: dict[str, Any] = {"data": {**others, IMAGE: f"/data/local-files/?d={quote(image)}"}}
    if label is not None:
        made["annotations"] = [{"result": [_choice(label)]}]
    if guess is not None:
        name, score = guess
        made["predictions"] = [{"model_version": model, "score": score, "result": [_choice(name) | {"score": score}]}]
    return made


def _choice(label: str) -> dict[str, Any]:
    return {"from_name": CHOICE, "to_name": IMAGE, "type": "choices", "value": {"choices": [label]}}
