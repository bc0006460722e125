"""Train one network on this process's device, and measure it in eval mode on the crops that serving uses."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from penult.export.config.train import BALANCED, PENULTIMATE
from penult.export.data.loader import LearningBatch, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.networks.layers import Layer
from penult.export.networks.network import Normalise, PenultNet, make_views
from penult.export.training.distributed import ProcessGroup


class Rates(Protocol):
    """Sets the rates of an optimizer's next step."""

    def before_step(self) -> None:
        """Set them."""


Tensors = tuple[torch.Tensor, torch.Tensor]
Layers = tuple[dict[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class EvalResult:
    """Mean loss, the standard error of that mean, and accuracy, over the photos of all processes."""

    loss: float
    error: float
    accuracy: float


class Trainer:
    """Trains a network on one device, in one precision, on this process's part of every batch."""

    def __init__(
        self, net: PenultNet, reader: PhotoReader, processes: ProcessGroup, weights: torch.Tensor, precision: str
    ) -> None:
        """Move the network to the device.

        Args:
            net: The network, trained in place.
            reader: Reads the photos.
            processes: The processes of the run; batches are split over them.
            weights: The weight of each class in the loss, float [classes].
            precision: "auto", "fp32", "bf16" or "fp16".
        """
        self.device = processes.device
        self.net = net.to(self.device).to(memory_format=torch.channels_last)
        self.normalise = Normalise(reader.spec).to(self.device)
        self.reader = reader
        self.processes = processes
        self.weights = weights.to(self.device)
        self._dtype = _precision(precision, self.device)
        # Without a scaled loss the smallest gradients of fp16 become 0; the other precisions need no scaling.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._dtype == torch.float16)

    def epoch(
        self,
        batches: Iterable[LearningBatch],
        optimizer: torch.optim.Optimizer,
        rates: Rates,
        forward: nn.Module,
        max_steps: float = math.inf,
    ) -> list[float]:
        """Take a step per batch and return the loss of each step.

        Args:
            batches: This process's parts of the batches.
            optimizer: Updates the parameters.
            rates: Sets the rates of each step.
            forward: The network, or the network wrapped for shared gradients.
            max_steps: Steps to take at most.
        """
        sums: list[tuple[torch.Tensor, float]] = []
        forward.train()
        for batch in batches:
            if len(batch.whole) == 1 and sums and self.reader.batch_size > 1:
                continue  # batch norm cannot use a single remaining photo
            pixels = torch.from_numpy(batch.pixels).to(self.device, non_blocking=True)
            labels = torch.from_numpy(batch.labels).to(self.device, non_blocking=True)
            total = float(self.weights[torch.from_numpy(batch.whole).to(self.device)].sum())
            self.net.rows.first, self.net.rows.total = batch.first, len(batch.whole)
            rates.before_step()
            logits = partial(self._logits, forward, pixels)
            loss = self.step(optimizer, logits, labels, self.processes.size / total)
            sums.append((loss, total))
            if len(sums) >= max_steps:
                break
        self.net.rows.first, self.net.rows.total = 0, 0
        losses = self.processes.sums([float(loss) for loss, _ in sums])
        return [loss / total for loss, (_, total) in zip(losses, sums, strict=True)]

    def _logits(self, forward: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(self.normalise(pixels))[0]
        return logits

    def step(
        self, optimizer: torch.optim.Optimizer, logits: Callable[[], torch.Tensor], labels: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Take one optimizer step on the summed loss times `scale`; return the sum.

        DDP averages gradients over processes, but the loss of a batch is the sum of its parts; `scale` corrects this.
        """
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = F.cross_entropy(logits().float(), labels, weight=self.weights, reduction="sum")
        self.scaler.scale(loss * scale).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        return loss.detach()

    def describe(self, photos: Sequence[Photo], what: str) -> Tensors:
        """Run the body in eval mode on this process's part; return descriptors [n, length] and labels int64 [n]."""
        self.net.eval()
        descriptors = [torch.empty(0, self.net.descriptor_length, device=self.device)]
        labels = [torch.empty(0, dtype=torch.int64, device=self.device)]
        with torch.inference_mode():
            for pixels, truth in self.reader.crops(self.processes.part(photos), what):
                descriptors.append(self.net.describe(self.normalise(torch.from_numpy(pixels).to(self.device))))
                labels.append(torch.from_numpy(truth).to(self.device))
        return torch.cat(descriptors).clone(), torch.cat(labels).clone()

    def describe_layers(self, photos: Sequence[Photo], what: str, layers: Sequence[Layer]) -> Layers:
        """Return the output of every layer by name, float [N, length], and labels int64 [N], in every process.

        All are of one pass over the photos, in eval mode. PENULTIMATE is the name of what the head reads.
        """
        crop, labels = self.reader.spec.crop, [torch.empty(0, dtype=torch.int64, device=self.device)]
        found: dict[str, list[torch.Tensor]] = {}
        self.net.eval()

        def add(pixels: torch.Tensor, count: int) -> None:
            read, taken = self.net.describe_layers(self.normalise(pixels.to(self.device)), layers)
            for name, rows in (taken | {PENULTIMATE: read}).items():
                found.setdefault(name, []).append(rows[:count])

        with torch.inference_mode():
            # No row, but the lengths, if other processes have all photos.
            add(torch.zeros(1, crop, crop, 3, dtype=torch.uint8), 0)
            for pixels, truth in self.reader.crops(self.processes.part(photos), what):
                add(torch.from_numpy(pixels), len(pixels))
                labels.append(torch.from_numpy(truth).to(self.device))
        rows = {name: self.processes.rows(torch.cat(parts).clone()) for name, parts in found.items()}
        return rows, self.processes.rows(torch.cat(labels).clone())

    def describe_views(self, photos: Sequence[Photo], what: str, views: int) -> torch.Tensor:
        """Return what the head reads of each view of all photos, float [N, views, length], in every process.

        The views are those of make_views(): the photo, its mirror image, and both turned.
        """
        self.net.eval()
        found = [torch.empty(0, views, self.net.descriptor_length, device=self.device)]
        with torch.inference_mode():
            for pixels, _ in self.reader.crops(self.processes.part(photos), what):
                inputs = self.normalise(torch.from_numpy(pixels).to(self.device))
                seen = self.net.body(make_views(inputs, views) if views > 1 else inputs)
                found.append(seen.view(views, len(inputs), -1).transpose(0, 1))
        return self.processes.rows(torch.cat(found).clone())

    def describe_all(self, photos: Sequence[Photo], what: str) -> Tensors:
        """Return descriptors float [N, length] and labels int64 [N] of all photos, in every process."""
        descriptors, labels = self.describe(photos, what)
        return self.processes.rows(descriptors), self.processes.rows(labels)

    def measure(self, photos: Sequence[Photo], what: str) -> EvalResult:
        """Return loss and accuracy in eval mode, over the parts of all processes."""
        return self.evaluate(*self.describe(photos, what), self.processes)

    @torch.no_grad()
    def evaluate(self, descriptors: torch.Tensor, labels: torch.Tensor, processes: ProcessGroup) -> EvalResult:
        """Return loss and accuracy of the head on descriptors [n, length] with labels [n], summed over `processes`."""
        logits = self.net.head.eval()(descriptors).float()
        losses = F.cross_entropy(logits, labels, weight=self.weights, reduction="none").double()
        weights = self.weights[labels].double()
        hits = (logits.argmax(1) == labels).sum()
        values = (losses.sum(), losses.square().sum(), weights.sum(), (losses * weights).sum(), weights.square().sum())
        return _measured(*processes.sums([*(float(value) for value in values), float(hits), len(labels)]))


def _measured(
    loss: float, squares: float, weight: float, crossed: float, weight_squares: float, hits: float, count: float
) -> EvalResult:
    """Return the weighted mean, its standard error (of a ratio of sums, linearised) and the share of hits."""
    mean = loss / weight
    spread = max(squares - 2 * mean * crossed + mean**2 * weight_squares, 0.0)
    return EvalResult(mean, math.sqrt(spread) / weight, hits / count)


def steps_of(photos: int, batch_size: int) -> int:
    """Return the steps of an epoch; Trainer.epoch() skips a last batch of a single photo."""
    whole, left_over = divmod(photos, batch_size)
    return max(1, whole + (left_over > 1))


def class_weights(kind: str, photos: Sequence[Photo], classes: int) -> torch.Tensor:
    """Return a weight per class, float [classes]: ones, or N / (classes x count) as scikit-learn's "balanced"."""
    if kind != BALANCED:
        return torch.ones(classes)
    count = Counter(photo.label for photo in photos)
    return torch.tensor([len(photos) / (classes * max(count[label], 1)) for label in range(classes)])


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions; "auto" is bf16 on GPUs that have it, fp16 on others, fp32 on the CPU."""
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        # PyTorch emulates bf16 where it is missing, more slowly than fp32.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
