"""Score crops with anomalib's PatchCore; runs in an environment of its own, which has anomalib and not penult.

    PYTHON bench/peers/patchcore.py ARCH WEIGHTS CROPS.npz SCORES.npz

CROPS.npz has the array train, uint8 [N, 224, 224, 3], and others to score. SCORES.npz gets their scores, float32 [N].
"""

import sys
import time
import warnings

import numpy as np
import torch
import torchvision

warnings.simplefilter("ignore")

# Two depths in the middle of the network, as PatchCore takes them of a ResNet.
LAYERS = {"squeezenet1_1": ("features.7", "features.12"), "mobilenet_v2": ("features.6", "features.13")}
# The coreset is chosen from a random tenth of the patches: from all, it takes an hour on a core.
PATCHES, CORESET, BATCH = 0.1, 1000, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Fill the memory bank from the training crops, and score the others."""
    arch, weights, crops, scores = sys.argv[1:]
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = torchvision.models.get_model(arch, weights=None)
    backbone.load_state_dict(torch.load(weights, weights_only=True))
    model = PatchcoreModel(LAYERS[arch], backbone.eval(), pre_trained=False)
    started = time.process_time()
    with np.load(crops) as found:
        model.train()
        model.feature_extractor.eval()
        for batch in batches(found["train"]):
            model(batch)
        bank = torch.vstack(model.embedding_store)
        some = torch.randperm(len(bank))[: max(CORESET, round(PATCHES * len(bank)))]
        model.embedding_store = [bank[some]]
        model.subsample_embedding(min(1.0, CORESET / len(some)))
        filled = time.process_time()
        model.eval()
        given = {name: score(model, found[name]) for name in found if name != "train"}
    photos = sum(map(len, given.values()))
    seconds = filled - started, (time.process_time() - filled) / photos
    print(f"patchcore {arch}: {seconds[0]:.0f} CPU-s to fit, {1000 * seconds[1]:.0f} CPU-ms a photo", file=sys.stderr)
    np.savez(scores, **given)


def batches(crops: np.ndarray) -> list[torch.Tensor]:
    """Yield normalised batches [n, 3, H, W]."""
    for start in range(0, len(crops), BATCH):
        pixels = torch.from_numpy(crops[start : start + BATCH]).permute(0, 3, 1, 2).float() / 255
        yield (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def score(model: torch.nn.Module, crops: np.ndarray) -> np.ndarray:
    """Return the anomaly score of each photo, float32 [N]."""
    with torch.inference_mode():
        return torch.cat([model(batch).pred_score.reshape(-1) for batch in batches(crops)]).numpy()


if __name__ == "__main__":
    main()
