"""Cut every network of the installed timm, then export and train the smallest CNNs of each family, with random weights.

`python bench/networks.py cut LOG` cuts all of them on the device "meta", where nothing is computed.
`python bench/networks.py check LOG --members N --cpu-seconds S` takes the N smallest CNNs of each family with at most
60 million parameters. It exports each at a small input, compares ONNX with PyTorch, and takes two training steps with
three stages frozen. Both go on where an earlier run ended. `python bench/networks.py show LOG` prints the log.
"""

import argparse
import json
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from penult.bundle.manifest import DENSE, Manifest
from penult.bundle.scores import largest_difference
from penult.export.config import timm_facts
from penult.export.config.known_networks import TIMM, Network
from penult.export.config.train import TrainSettings
from penult.export.networks import architectures, timm_networks
from penult.export.networks.network import Normalise, build, freeze_stages, parameter_groups
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.runtime import ExportedModel

MOST_PARAMETERS = 60e6
# Files of timm whose networks are convolutions all through. byobnet and maxxvit also have networks with attention.
CNN_FILES = {
    "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet", "fasternet",
    "ghostnet", "hgnet", "hrnet", "inception_next", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2",
    "mambaout", "mobilenetv3", "mobilenetv5", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost", "repvit",
    "resnest", "resnet", "resnetv2", "res2net", "rexnet", "selecsls", "senet", "sknet", "starnet", "tresnet", "vgg",
    "vovnet", "xception", "xception_aligned",
}  # fmt: skip
ATTENTION = ("bat_", "botnet", "eca_botnext", "halo", "lambda_", "sehalo", "lamhalo", "eca_halo", "mobilenetv4_hybrid")
CLASSES, STEPS, FROZEN, TOLERANCE = 3, 2, 3, 1e-4
SMALL = (64, 96, 128, 160, 192, 224, 256, 288, 320, 384)


def cut_all(log: Path) -> None:
    known = {row["name"] for row in rows(log) if row["what"] == "cut"}
    waiting = [name for name in timm_networks.names() if name not in known]
    for place, name in enumerate(waiting):
        started = time.process_time()
        found = timm_facts.answer(name)
        row: dict[str, Any] = {"what": "cut", "name": name, "family": family(name)}
        if network := found.get("network"):
            row |= {"parameters": network["parameters"], "stages": network["stages"], "exact": network["mean_is_last"]}
        else:
            row |= {"refused": found["refused"], "parameters": parameters(name)}
        write(log, row | {"cpu_seconds": round(time.process_time() - started, 2)})
        if place % 100 == 0:
            print(f"{place} of {len(waiting)}", file=sys.stderr, flush=True)


def check_some(log: Path, members: int, cpu_seconds: float) -> None:
    read = rows(log)
    done = {row["name"] for row in read if row["what"] == "check"}
    by_family: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read:
        if row["what"] == "cut" and "refused" not in row and is_small_cnn(row):
            by_family[row["family"]].append(row)
    for group in by_family.values():
        group.sort(key=lambda row: row["parameters"])
    order = [group[n] for n in range(members) for group in by_family.values() if n < len(group)]
    # Files of timm that have no network in the log yet come first, and of these the smallest networks.
    order.sort(key=lambda row: row["parameters"])
    seen = {row["family"].partition("/")[0] for row in read if row["what"] == "check"}
    first = {row["family"].partition("/")[0]: row for row in reversed(order)}
    order = [row for file, row in first.items() if file not in seen] + order
    for row in order:
        if row["name"] in done:
            continue
        done.add(row["name"])
        if time.process_time() > cpu_seconds:
            print("out of time; run it again to go on", file=sys.stderr)
            return
        started = time.process_time()
        try:
            result = check(row["name"])
        except Exception as error:  # the log says which network failed, and why
            result = {"failed": f"{type(error).__name__}: {error}"[:300]}
        result |= {"what": "check", "name": row["name"], "family": row["family"]}
        write(log, result | {"cpu_seconds": round(time.process_time() - started, 1)})


def check(name: str) -> dict[str, Any]:
    """Return the differences of the exported network, and whether frozen stages are bit-equal after two steps."""
    architecture = architectures.get(f"{TIMM}{name}")
    size, net = build_small(architecture)
    spec = replace(architecture.preprocess, crop=size, resize=size)
    manifest = Manifest(architecture.name, ("a", "b", "c"), spec, net.descriptor_length, DENSE, {})
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    normalised = Normalise(spec)(torch.from_numpy(pixels))
    spread(net, normalised)
    exported = ExportedModel(to_onnx(net, manifest), manifest).run(pixels)
    with torch.no_grad():
        own = [output.numpy() for output in net.eval()(normalised)]
    differences = [largest_difference(theirs, ours) for theirs, ours in zip(exported, own, strict=True)]
    freeze_stages(net, architecture, FROZEN)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(net, architecture, settings(architecture)), weight_decay=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(normalised)[0], torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    kept = tuple(f"body.{path}." for stage in architecture.stages[:FROZEN] for path in stage)
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    frozen = [key for key in before if key.startswith(kept)]
    moved = [key for key in before if not key.startswith(kept) and key.endswith("weight")]
    return {
        "input": size,
        "parity": max(differences),
        "frozen_equal": bool(frozen) and not changed & {*frozen},
        "learning_moved": sum(key in changed for key in moved) / len(moved),
    }


def build_small(architecture: architectures.Architecture) -> tuple[int, Any]:
    """Build a network and return it with the smallest input that it takes."""
    own = architecture.preprocess.crop
    net = build(architecture, settings(architecture), CLASSES)
    for size in [each for each in SMALL if each < own] + [own]:
        try:
            with torch.no_grad():
                net.train()(torch.zeros(2, 3, size, size))
                net.eval()(torch.zeros(2, 3, size, size))
        except Exception:  # maps that become too small; the next size is larger
            continue
        return size, net
    raise ValueError("takes no input at all")


def spread(net: torch.nn.Module, normalised: torch.Tensor) -> None:
    """Run one batch in train mode, so that batch norms have statistics and random maps neither vanish nor explode."""
    with torch.no_grad():
        for _ in range(4):
            net.train()(normalised)


def settings(architecture: Network) -> TrainSettings:
    return TrainSettings(data=Path(), out=Path(), arch=architecture.name, weights="none", freeze=0)


def family(name: str) -> str:
    """Return timm's file and the first word of a name, which is nearer to an architecture than the file alone."""
    import timm

    module = timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")
    return f"{module}/{name.partition('_')[0].rstrip('0123456789')}"


def is_cnn(row: dict[str, Any]) -> bool:
    return row["family"].partition("/")[0] in CNN_FILES and not row["name"].startswith(ATTENTION)


def is_small_cnn(row: dict[str, Any]) -> bool:
    return is_cnn(row) and row["parameters"] <= MOST_PARAMETERS


def parameters(name: str) -> int:
    """Return the parameters of a network that cannot be cut; 0 if it cannot be built."""
    import timm

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, pretrained=False, num_classes=0).parameters())
    except Exception:
        return 0


def rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def write(log: Path, row: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")


def show(log: Path) -> None:
    read = rows(log)
    cuts = [row for row in read if row["what"] == "cut"]
    cnns = [row for row in cuts if is_small_cnn(row)]
    cut = [row for row in cnns if "refused" not in row]
    others = [row for row in cuts if not is_cnn(row)]
    print(f"{len(cuts)} networks; {sum('refused' not in row for row in cuts)} cut")
    print(f"CNNs of at most 60 M parameters: {len(cut)} of {len(cnns)} cut ({len(cut) / max(1, len(cnns)):.1%})")
    print(f"class map exact: {sum(row['exact'] for row in cut)} of {len(cut)}")
    print(f"others (attention, tokens): {sum('refused' not in row for row in others)} of {len(others)} cut")
    for row in cnns:
        if "refused" in row:
            print(f"  not cut: {row['name']}: {row['refused']}")
    checks = [row for row in read if row["what"] == "check"]
    good = [row for row in checks if is_good(row)]
    families = {row["family"] for row in checks}
    print(
        f"checked: {len(checks)} of {len(families)} families; {len(good)} good ({len(good) / max(1, len(checks)):.1%})"
    )
    if good:
        worst = max(good, key=lambda row: row["parity"])
        print(
            f"worst parity {worst['parity']:.1e} ({worst['name']}); {sum(r['cpu_seconds'] for r in checks):.0f} CPU-s"
        )
    for row in checks:
        if not is_good(row):
            print(f"  {row['name']}: {row.get('failed') or row}")


def is_good(row: dict[str, Any]) -> bool:
    return "failed" not in row and row["parity"] <= TOLERANCE and row["frozen_equal"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("cut", "check", "show"))
    parser.add_argument("log", type=Path)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--cpu-seconds", type=float, default=1500)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.step == "cut":
        cut_all(arguments.log)
    elif arguments.step == "check":
        check_some(arguments.log, arguments.members, arguments.cpu_seconds)
    show(arguments.log)


if __name__ == "__main__":
    main()
