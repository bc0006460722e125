"""The processes of one run: a single one, or those that torchrun started. Only this module imports torch.distributed.

Every process has the same list of photos and works on its part of every batch. Results are sums over all processes, not
means of means, so that parts of different size have the correct weight (research/learning.md, table of complaints).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from penult.export.errors import SettingsError

T = TypeVar("T")
# The first process may train the head or export for a long time while the others wait.
_TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True)
class ProcessGroup:
    """One process (`rank`, from 0) among `size`, and its device.

    `are_joined` is True if torchrun started it, even as the only process.
    """

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    are_joined: bool = False

    @property
    def is_first(self) -> bool:
        """True for the process that writes files."""
        return self.rank == 0

    def bounds(self, count: int) -> tuple[int, int]:
        """Return start and end of this process's part of `count` items; parts differ by at most one item."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of the items, without padding."""
        start, end = self.bounds(len(items))
        return items[start:end]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all processes, in double precision."""
        if not self.are_joined:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def rows(self, own: torch.Tensor) -> torch.Tensor:
        """Return the rows [n, …] of all processes in the order of their ranks; n may differ."""
        if not self.are_joined:
            return own
        counts = self._counts(len(own))
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def same(self, value: T) -> T:
        """Return the first process's value in all processes."""
        if not self.are_joined:
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]  # type: ignore[return-value]

    def copy(self, net: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.are_joined:
            for value in net.state_dict().values():
                dist.broadcast(value, 0)

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the processes.

        Wrap it again whenever layers are frozen or unfrozen. DDP does not average gradients that were off when it
        wrapped the network, and gives no error (research/learning.md).
        """
        if not self.are_joined:
            return net
        return DistributedDataParallel(net)

    def _counts(self, own: int) -> list[int]:
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = own
        dist.all_reduce(counts)
        numbers: list[int] = counts.tolist()
        return numbers


ALONE = ProcessGroup()


@contextmanager
def started(wanted: str) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, if any; `wanted` is auto, cuda or cpu. Raises SettingsError."""
    device = device_for(wanted, int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" not in os.environ:
        yield ProcessGroup(device)
        return
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=_TIMEOUT, device_id=device if on_cuda else None)
    try:
        yield ProcessGroup(device, dist.get_rank(), dist.get_world_size(), are_joined=True)
    finally:
        dist.destroy_process_group()


def device_for(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device of a process for auto, cuda or cpu; raise SettingsError if it is missing."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise SettingsError(
            "DEVICE", "--device cuda: PyTorch finds no CUDA device; check nvidia-smi, or use --device cpu"
        )
    if local_rank >= count:
        raise SettingsError(
            "DEVICE", f"torchrun started more processes than there are GPUs; use --nproc-per-node {count}"
        )
    return torch.device("cuda", local_rank)


class _Sum(torch.autograd.Function):
    """Sum over the processes, with a gradient that is summed too, since each process's loss depends on the sum."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the whole batch of all processes, on any device (torch's SyncBatchNorm needs a GPU).

    Without it, each of two processes would normalise by the statistics of half a batch. On CPUs torch's own batch norm
    sums in plain float32 (errors up to 4e-4 in channels_last), this one pairwise. So runs of one and of two processes
    under torchrun differ in the last digits only.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map [n, C, H, W] to the same shape; n may be 0 if another process has photos."""
        if not self.training:
            return super().forward(maps)
        values = maps.float()
        ones = values.new_full((1,), values.numel() / max(values.shape[1], 1))
        count = _Sum.apply(ones)
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        assert self.weight is not None  # all networks of penult have a weight
        scale = self.weight / torch.sqrt(variance + self.eps)
        normalized: torch.Tensor = (centred * scale[:, None, None] + self.bias[:, None, None]).to(maps.dtype)
        return normalized

    @torch.no_grad()
    def _update_running(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.num_batches_tracked is not None  # as torch's own forward
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def share_batch_norm(net: nn.Module, processes: ProcessGroup) -> None:
    """Make every batch norm of the network use statistics over all processes."""
    for module in net.modules() if processes.are_joined else ():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
