"""Import networks of torchvision with random weights, as both of PyTorch's exporters write them; print the differences.

python bench/import_onnx.py squeezenet1_1 mobilenet_v2
"""

import contextlib
import io
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision

from penult import cli

SPEC = '{"resize": 72, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder, "labels.txt")
        labels.write_text("\n".join("abcde"))
        for name in names:
            torch.manual_seed(0)
            net = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
            for dynamo in (False, True):
                source, out, started = Path(folder, f"{name}.onnx"), io.StringIO(), time.process_time()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                    torch.onnx.export(net, (torch.zeros(1, 3, 64, 64),), source, dynamo=dynamo)
                    out.truncate(out.seek(0))
                    exported = time.process_time()
                    words = ["--out", str(Path(folder, "models", name)), "--labels", str(labels), "--preprocess", SPEC]
                    code = cli.main(["import", str(source), *words, "--json"])
                parity = json.loads(out.getvalue())["parity"] if code == 0 else "refused"
                seconds = f"{exported - started:.1f} + {time.process_time() - exported:.1f} CPU s"
                print(name, "dynamo" if dynamo else "TorchScript", parity, seconds, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["squeezenet1_1", "mobilenet_v2"])
