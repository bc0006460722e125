"""Fit AutoGluon's MultiModalPredictor for so many minutes; print the accuracy on the test photos as JSON.

    PYTHON autogluon_budget.py PHOTOS WEIGHTS ARCH SECONDS SEED

PYTHON has autogluon.multimodal. PHOTOS has train/, val/ and test/. WEIGHTS is a state dict of torchvision's ARCH.
AutoGluon's networks are those of timm, whose tensors have other names; they are renamed by order and shape.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import pandas
import timm
import torch
from autogluon.multimodal import MultiModalPredictor
from autogluon.multimodal.models import timm_image

_TIMM = {"mobilenet_v2": "mobilenetv2_100"}


def _rows(photos: Path, part: str) -> pandas.DataFrame:
    files = sorted(path for path in (photos / part).rglob("*") if path.is_file())
    return pandas.DataFrame({"image": [str(path) for path in files], "label": [path.parent.name for path in files]})


def _renamed(weights: str, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors under timm's names: both libraries list MobileNetV2's layers in the same order."""
    given = list(torch.load(weights, weights_only=True).values())
    own = timm.create_model(name, pretrained=False).state_dict()
    assert [tuple(value.shape) for value in given] == [tuple(value.shape) for value in own.values()]
    return dict(zip(own, given, strict=True))


def main() -> int:
    """Train, and print one line."""
    began = time.monotonic()
    photos, weights, arch, seconds, seed = sys.argv[1:6]
    if arch not in _TIMM:
        print(json.dumps({"error": f"timm has no {arch}"}))
        return 0
    state, create = _renamed(weights, _TIMM[arch]), timm.create_model
    # Where AutoGluon has imported it.
    timm_image.create_model = lambda *words, **options: _loaded(create, state, words, options)
    classes = len(list((Path(photos) / "train").iterdir()))
    out = tempfile.mkdtemp(prefix="autogluon-")
    predictor = MultiModalPredictor(
        label="label", path=f"{out}/model", problem_type="multiclass" if classes > 2 else "binary", verbosity=1
    )
    predictor.fit(
        _rows(Path(photos), "train"), tuning_data=_rows(Path(photos), "val"),
        time_limit=0.9 * float(seconds) - (time.monotonic() - began), seed=int(seed),
        hyperparameters={
            "model.names": ["timm_image"], "model.timm_image.checkpoint_name": _TIMM[arch],
            "env.num_workers": 0, "env.num_gpus": 0, "env.num_workers_inference": 0, "env.per_gpu_batch_size": 32,
        },
    )  # fmt: skip
    tested = _rows(Path(photos), "test")
    right = (predictor.predict(tested) == tested["label"]).mean()
    print(json.dumps({"accuracy": float(right), "seconds": time.monotonic() - began}))
    return 0


def _loaded(create, state, words, options):
    """Build a model of timm without a download, and load the tensors that fit."""
    model = create(*words, **{**options, "pretrained": False})
    own = model.state_dict()
    model.load_state_dict(
        {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}, strict=False
    )
    return model


if __name__ == "__main__":
    sys.exit(main())
