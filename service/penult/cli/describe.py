"""`penult describe`: print the descriptors of images, or write them to a Parquet file."""

import argparse

from penult.cli.answers import error_cell, failed, last_answer, print_answers
from penult.cli.arguments import (
    PARQUET,
    Refused,
    add_connection_arguments,
    add_model_arguments,
    client_of,
    explained,
    file_to_read,
    file_to_write,
    named_photos,
)
from penult.client.types import ItemFailure
from penult.console import has_bar

_NOT_AS_TEXT = "descriptors are written as Parquet (--json without --out prints them as text)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult describe`."""
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image files, or folders of them")
    add_model_arguments(parser)
    add_connection_arguments(parser)
    bulk = parser.add_argument_group("any number of photos, into a file")
    bulk.add_argument(
        "--out",
        type=file_to_write(PARQUET, _NOT_AS_TEXT, makes_folder=True),
        metavar="FILE.parquet",
        help="write descriptors to this file; run again to resume",
    )
    bulk.add_argument("--list", type=file_to_read, metavar="FILE", help="file with a photo's path per line")
    bulk.add_argument(
        "--from", type=file_to_read, dest="source", metavar="FILE.parquet", help="Parquet file with a column of photos"
    )
    bulk.add_argument("--column", default="image", metavar="NAME", help="its column of bytes or paths (%(default)s)")
    bulk.add_argument("--id-column", default="", metavar="NAME", help="its column of ids (default: id, if present)")
    bulk.add_argument("--restart", action="store_true", help="discard what an earlier run has written")


def run(arguments: argparse.Namespace) -> int:
    """Print descriptors, or write them to a file; return 1 if any image failed. Raises RequestFailed, Refused."""
    if arguments.out:
        from penult.cli.describe_bulk import describe_all  # needs pyarrow

        with explained(arguments):
            return describe_all(arguments)
    if not arguments.images or arguments.list or arguments.source or arguments.restart:
        raise Refused("name photos to print their descriptors; --list, --from and --restart need --out FILE")
    photos = named_photos(arguments.images)
    with explained(arguments), client_of(arguments) as client:
        found = client.describe_many(photos, model=arguments.model, version=arguments.version, progress=has_bar())
        answers = list(found)
    rows, values = [], []
    for answer in answers:
        image, result = str(answer.photo), answer.result
        if isinstance(result, ItemFailure):
            rows.append([image, "", "", error_cell(result)])
            values.append(failed(image, result))
            continue
        start = " ".join(f"{number:.3f}" for number in result[:6])
        rows.append([image, str(len(result)), f"{start} …", ""])
        values.append({"image": image, "descriptor": result.tolist()})
    header = ["image", "numbers", "descriptor", "error"]
    return print_answers(arguments, answers, header, rows, values, fingerprint=last_answer(answers).fingerprint)
