"""Fine-tune with fastai's `fine_tune` for so many minutes; print the accuracy on the test photos as JSON.

    PYTHON fastai_budget.py PHOTOS WEIGHTS ARCH SECONDS SEED

PYTHON has fastai. PHOTOS has train/, val/ and test/. WEIGHTS is a state dict of torchvision's ARCH. The epochs are
those that fit: one frozen and one unfrozen epoch are timed first.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torchvision
from fastai.vision.all import (
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    add_head,
    aug_transforms,
    default_split,
    imagenet_stats,
    num_features_model,
    set_seed,
)

_KEPT = 0.95


def main() -> int:
    """Train, and print one line."""
    began = time.monotonic()
    photos, weights, arch, seconds, seed = sys.argv[1:6]
    set_seed(int(seed), reproducible=True)
    loaders = ImageDataLoaders.from_folder(
        Path(photos), train="train", valid="val", bs=32, num_workers=0, item_tfms=Resize(256),
        batch_tfms=[*aug_transforms(size=224), Normalize.from_stats(*imagenet_stats)],
    )  # fmt: skip
    network = torchvision.models.get_model(arch, weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    # As vision_learner() does with its own networks.
    body = network.features
    model = add_head(body, num_features_model(body), loaders.c)
    learner = Learner(loaders, model, metrics=accuracy, splitter=default_split)
    start = {name: value.clone() for name, value in learner.model.state_dict().items()}
    with learner.no_bar(), learner.no_logging():
        timed = time.monotonic()
        learner.freeze()
        learner.fit_one_cycle(1)
        frozen_s = time.monotonic() - timed
        timed = time.monotonic()
        learner.unfreeze()
        learner.fit_one_cycle(1)
        epoch_s = time.monotonic() - timed
        learner.model.load_state_dict(start)
        left = _KEPT * float(seconds) - (time.monotonic() - began) - frozen_s
        epochs = max(1, int(left / epoch_s) - 1)
        learner.fine_tune(epochs)
    files = sorted(path for path in (Path(photos) / "test").rglob("*") if path.is_file())
    tested = loaders.test_dl(files, with_labels=False)
    answers = learner.get_preds(dl=tested)[0].argmax(1)
    right = sum(loaders.vocab[n] == file.parent.name for n, file in zip(answers.tolist(), files, strict=True))
    spent = time.monotonic() - began
    print(json.dumps({"accuracy": right / len(files), "seconds": spent, "epochs": epochs + 1}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
