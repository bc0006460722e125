"""`penult networks`: list the networks that `--arch` takes."""

import argparse
import json
from typing import Any

from penult.console import print_table, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --timm and --json."""
    parser.add_argument(
        "--timm",
        nargs="?",
        const="*",
        metavar="PATTERN",
        help="list networks of timm instead, by names such as 'resnet*'; default *",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the networks; return 0, or 1 if no name of timm matches."""
    from penult.export.config import known_networks

    refused: dict[str, str] = {}
    if arguments.timm is None:
        found = [known_networks.NETWORKS[name] for name in known_networks.names()]
    else:
        found, refused = _of_timm(arguments.timm)
    if arguments.json:
        listed = [_described(network) for network in found]
        print(json.dumps({"networks": listed, "refused": [{"name": n, "reason": r} for n, r in refused.items()]}))
        return 0
    header = ("network", "parameters", "descriptor", "input", "weights", "class map", "stages")
    print_table(header, [_row(network) for network in found])
    for name, reason in refused.items():
        print(f"not usable: {name} {reason}")
    return 0


def _of_timm(pattern: str) -> tuple[list[Any], dict[str, str]]:
    """Return the networks of timm that match, and why the others are refused; raise SettingsError if none matches."""
    from penult.export.config import known_networks, timm_facts
    from penult.export.errors import SettingsError

    version = timm_facts.installed()
    from penult.export.networks import timm_networks

    names = timm_networks.names(pattern.removeprefix(timm_facts.PREFIX))
    if not names:
        raise SettingsError("ARCHITECTURE", f"--timm {pattern}: timm {version} has no such network; give a pattern")
    found, refused = [], {}
    for name in progress(names, "cutting networks", len(names)):
        if reason := timm_facts.answer(name).get("refused"):
            refused[f"{timm_facts.PREFIX}{name}"] = reason
        else:
            found.append(known_networks.get(f"{timm_facts.PREFIX}{name}"))
    return found, refused


def _described(network: Any) -> dict[str, Any]:
    return {
        "name": network.name,
        "stages": network.stages,
        "dense": network.dense,
        "descriptor_length": network.descriptor_length,
        "parameters": network.parameters,
        "input_pixels": network.preprocess.crop,
        "downloads": network.downloads,
        "class_map_exact": network.mean_is_last,
    }


def _row(network: Any) -> tuple[str, ...]:
    return (
        network.name,
        f"{network.parameters:,}",
        f"{network.descriptor_length:,}",
        str(network.preprocess.crop),
        ", ".join(network.downloads) or "none",
        "exact" if network.mean_is_last else "no",
        " | ".join(_short(stage) for stage in network.stages),
    )


def _short(paths: tuple[str, ...]) -> str:
    return ", ".join(paths) if len(paths) <= 2 else f"{paths[0]} … {paths[-1]}"
