"""Import state dicts of torchvision and timm with random weights and their own head; print the differences.

python bench/import_checkpoints.py resnet18 densenet121 timm/resnet18
"""

import contextlib
import io
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
import torchvision

from penult import cli

SPEC = '{"resize": 72, "crop": 64}'


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder, "labels.txt")
        labels.write_text("\n".join("abcde"))
        for name in names:
            torch.manual_seed(0)
            is_timm = name.startswith("timm/")
            net = (
                timm.create_model(name.removeprefix("timm/"), num_classes=5)
                if is_timm
                else torchvision.models.get_model(name, weights=None, num_classes=5)
            )
            for each in net.modules():
                if isinstance(each, torch.nn.BatchNorm2d):
                    each.running_mean.uniform_(-0.1, 0.1)
                    each.running_var.uniform_(0.5, 1.5)
            source, out, err, started = Path(folder, "w.pth"), io.StringIO(), io.StringIO(), time.process_time()
            torch.save(net.state_dict(), source)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                words = ["--arch", name, "--out", str(Path(folder, "models", "x")), "--labels", str(labels)]
                code = cli.main(["import", str(source), *words, "--preprocess", SPEC, "--json"])
            found = json.loads(out.getvalue())["parity"] if code == 0 else err.getvalue().splitlines()[-1]
            print(name, found, f"{time.process_time() - started:.1f} CPU s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["squeezenet1_1", "mobilenet_v2", "timm/resnet18"])
