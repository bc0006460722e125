"""`penult classify`: the classes of images, from a running server."""

import argparse
from pathlib import Path
from typing import Any

from penult.bundle.operating_points import percent
from penult.cli.answers import error_cell, failed, last_answer, print_answers
from penult.cli.arguments import (
    Refused,
    add_connection_arguments,
    add_model_arguments,
    client_of,
    count,
    explained,
    named_photos,
    share,
)
from penult.cli.class_map_pictures import check_place, draw
from penult.client.types import Classification, ItemFailure, MapsWanted, Neighbours
from penult.console import has_bar

_NEIGHBOURS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult classify`."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    add_model_arguments(parser)
    add_connection_arguments(parser)
    parser.add_argument(
        "--scorer",
        choices=("dense", "svm", "neighbours", "novelty"),
        help="what scores the classes (default: the model's own)",
    )
    parser.add_argument("--collection", "-c", default="", metavar="C", help="collection to look up neighbours in")
    parser.add_argument("-k", type=count, metavar="N", help=f"neighbours per photo ({_NEIGHBOURS})")
    parser.add_argument(
        "--max-error", type=share, metavar="PERCENT", help="certified share of wrong answers (the model's own)"
    )
    parser.add_argument(
        "--map", type=Path, metavar="OUT", help="draw what adds to the score; a picture, or a folder for several"
    )
    parser.add_argument("--top", type=count, default=5, metavar="K", help="classes per photo in --json (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print a table or JSON; return 1 if any image failed. Raises RequestFailed, Refused."""
    neighbours = _neighbours(arguments)
    photos = named_photos(arguments.images)
    check_place(arguments.map, len(photos))
    maps = MapsWanted(is_exact=True) if arguments.map else None
    with explained(arguments, arguments.collection), client_of(arguments) as client:
        found = client.classify_many(
            photos, model=arguments.model, version=arguments.version, scorer=arguments.scorer, top_k=arguments.top,
            neighbours=neighbours, max_error=arguments.max_error, maps=maps, progress=has_bar(),
        )  # fmt: skip
        answers = list(found)
    if arguments.map:
        draw(arguments.map, answers)
    rows, values = [], []
    for answer in answers:
        image, result = str(answer.photo), answer.result
        if isinstance(result, ItemFailure):
            rows.append([image, "", "", "", "", error_cell(result)])
            values.append(failed(image, result))
        else:
            rows.append(_row(image, result, answer.novelty_threshold))
            values.append(_value(image, result, neighbours, answer.max_error))
    last = last_answer(answers)
    header = ["image", "label", "probability", "distance", "score", "error"]
    code = print_answers(arguments, answers, header, rows, values, scorer=last.scorer)
    if last.max_error is not None and not arguments.json:
        print(f"unsure or novel: withheld; of the other answers at most {percent(last.max_error)} are wrong")
    if last.scorer == "novelty" and not arguments.json:
        print(
            "distance: to the training photos; above 1 a photo is novel. "
            "probability: share of held-out photos of the class at least as far"
        )
    elif last.novelty_threshold is not None and not arguments.json:
        print("distance: to the training photos; above 1 a photo is novel, and its class may be meaningless")
    return code


def _neighbours(arguments: argparse.Namespace) -> Neighbours | None:
    """Return which neighbours to look up; raise Refused if an option needs a collection and none is given."""
    if arguments.collection:
        return Neighbours(arguments.collection, arguments.k or _NEIGHBOURS)
    if arguments.k or arguments.scorer == "neighbours":
        flag = "-k" if arguments.k else "--scorer neighbours"
        raise Refused(f"{flag} needs a collection: name it with --collection C")
    return None


def _row(image: str, found: Classification, threshold: float | None) -> list[str]:
    # The distance is in units of the model's limit.
    distance = f"{found.novelty / threshold:.2f}" if threshold and found.novelty is not None else ""
    label = found.label + (" (novel)" if found.is_novel else " (unsure)" if found.abstained else "")
    return [image, label, f"{found.probability:.1%}", distance, f"{found.score:.2f}", ""]


def _value(image: str, found: Classification, neighbours: Neighbours | None, max_error: float | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "image": image,
        "label": found.label,
        "score": found.score,
        "probability": found.probability,
        "classes": [vars(scored) for scored in found.classes],
    }
    if found.novelty is not None:
        value |= {"novelty": found.novelty, "is_novel": found.is_novel}
    if max_error is not None:
        value |= {"abstained": found.abstained, "abstain_reason": found.abstain_reason, "max_error": max_error}
    if found.class_maps:
        value["class_maps"] = [vars(each) | {"values": each.values.tolist()} for each in found.class_maps]
    if neighbours:
        value["neighbours"] = [vars(each) for each in found.neighbours]
    return value
