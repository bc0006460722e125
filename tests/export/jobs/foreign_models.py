"""Make models with the libraries that people make them with, import each, and print how they compare, a line each.

Runs with the packages of locks/foreign.txt on the path (test_import_foreign.py). Each line has the parity that penult
measured, the largest difference between the bundle and the original here, and that of the pixels they are given.
"""

import contextlib
import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageFilter
from torch import nn

import penult.export
from penult.bundle.preprocess import crop_encoded
from penult.bundle.reader import read_bundle
from penult.export.onnx.runtime import ExportedModel

NAMES = ("ant", "bee", "cat")
SIDE = 64
Run = Callable[[torch.Tensor], torch.Tensor]


def settled(net: Any) -> Any:
    """Return a network in eval mode whose batch norms have statistics of their own."""
    for each in net.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.uniform_(-0.1, 0.1)
            each.running_var.uniform_(0.5, 1.5)
    return net.eval()


def photo() -> bytes:
    """Return a smooth PNG of 120 x 90 pixels, whose sides after resizing differ from the crop's by even numbers."""
    noise = np.random.default_rng(5).integers(0, 256, (90, 120, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)).save(encoded, "PNG")
    return encoded.getvalue()


def compare(folder: Path, original: Run, processed: np.ndarray | None = None) -> dict[str, float]:
    """Return the largest difference of logits on random pixels, and of the input of a photo in gray levels."""
    bundle = read_bundle(folder)
    spec = bundle.manifest.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (4, spec.crop, spec.crop, 3), np.uint8)
    image = torch.from_numpy(((pixels / 255 - spec.mean) / spec.std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = original(image).numpy()
    logits, _ = ExportedModel(bundle.onnx, bundle.manifest).run(pixels)
    found = {"difference": float(np.abs(logits - wanted).max() / np.abs(wanted).max())}
    if processed is not None:
        ours = (crop_encoded(photo(), spec) / 255 - spec.mean) / spec.std
        found["pixels"] = float((np.abs(ours.transpose(2, 0, 1) - processed).max((1, 2)) * spec.std * 255).max())
    return found


def lightning(folder: Path) -> tuple[Path, dict[str, Any], Run, None]:
    """A checkpoint that Lightning's trainer saved after a step."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            self.model = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=len(NAMES))

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    module = Module()
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 0]))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(folder / "last.ckpt")
    options = {"arch": "squeezenet1_1", "preprocess": json.dumps({"resize": 72, "crop": SIDE})}
    return folder / "last.ckpt", options, module.model.eval(), None


def archiver(folder: Path) -> tuple[Path, dict[str, Any], Run, None]:
    """An archive that torch-model-archiver wrote of a state dict."""
    net = settled(torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=len(NAMES)))
    torch.save(net.state_dict(), folder / "best.pth")
    (folder / "model.py").write_text("raise SystemExit('this code must not run')\n")
    (folder / "index_to_name.json").write_text(json.dumps(dict(enumerate(NAMES))))
    words = ["--model-name", "pets", "--version", "1.0", "--model-file", "model.py", "--serialized-file", "best.pth"]
    words += ["--extra-files", "index_to_name.json", "--handler", "image_classifier", "--export-path", "."]
    subprocess.run([sys.executable, "-m", "model_archiver.model_packaging", *words], cwd=folder, check=True)
    return folder / "pets.mar", {"labels": None}, net, None


def hugging_face(family: str, config: dict[str, Any], processor: str, sizes: dict[str, Any]) -> Callable[[Path], Any]:
    """Return a maker of a folder that transformers saved."""

    def make(folder: Path) -> tuple[Path, dict[str, Any], Run, np.ndarray]:
        import transformers

        transformers.logging.set_verbosity(logging.CRITICAL)
        made = getattr(transformers, f"{family}Config")(**config, id2label=dict(enumerate(NAMES)))
        net = settled(getattr(transformers, f"{family}ForImageClassification")(made))
        net.save_pretrained(folder)
        prepare = getattr(transformers, f"{processor}ImageProcessor")(**sizes)
        prepare.save_pretrained(folder)
        pixels = prepare(Image.open(io.BytesIO(photo())), return_tensors="np")["pixel_values"][0]
        return folder, {"labels": None}, lambda image: net(pixel_values=image).logits, pixels

    return make


_NARROW = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
_CROPPED = {"size": {"shortest_edge": 72}, "crop_size": {"height": SIDE, "width": SIDE}}
_CONVNEXT = {"size": {"shortest_edge": SIDE}, "crop_pct": 0.888}
_OTHER = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
_REGNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "groups_width": 8}
MAKERS: dict[str, Callable[[Path], Any]] = {
    "lightning": lightning,
    "torch-model-archiver": archiver,
    "transformers resnet": hugging_face("ResNet", {"embedding_size": 16, **_NARROW}, "ConvNext", _CONVNEXT),
    "transformers convnext": hugging_face("ConvNext", _NARROW, "ConvNext", _CONVNEXT | _OTHER),
    "transformers convnextv2": hugging_face("ConvNextV2", _NARROW, "ConvNext", {"size": {"shortest_edge": 384}}),
    "transformers efficientnet": hugging_face(
        "EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, "EfficientNet",
        {"size": {"height": SIDE, "width": SIDE}} | _OTHER,
    ),
    "transformers mobilenet_v1": hugging_face(
        "MobileNetV1", {"depth_multiplier": 0.25}, "MobileNetV1", _CROPPED | {"do_normalize": False}
    ),
    "transformers mobilenet_v2": hugging_face("MobileNetV2", {"depth_multiplier": 0.35}, "MobileNetV2", _CROPPED),
    "transformers regnet": hugging_face("RegNet", _REGNET, "Bit", _CROPPED),
    "transformers hgnet_v2": hugging_face("HGNetV2", {}, "ViT", {"size": {"height": 72, "width": 72}}),
}  # fmt: skip


def main(below: Path, names: list[str]) -> None:
    """Make and import each model; print a line of JSON for each."""
    warnings.simplefilter("ignore")
    labels = below / "labels.txt"
    labels.write_text("\n".join(NAMES))
    for name in names or MAKERS:
        folder = below / name.replace(" ", "-")
        folder.mkdir()
        torch.manual_seed(3)
        with contextlib.redirect_stdout(sys.stderr):
            source, options, original, processed = MAKERS[name](folder)
            result = penult.export.import_model(source, folder / "models" / "pets", **({"labels": labels} | options))
        found = compare(folder / "models" / "pets", original, processed)
        print(json.dumps({"name": name, **found, "parity": result.metrics["parity"]}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
