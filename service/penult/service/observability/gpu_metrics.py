"""Memory and load of the GPUs that this process may use, read from NVIDIA's NVML on each scrape.

Without the NVML library or a GPU, the server exports none of these metrics.
"""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

try:
    import pynvml  # type: ignore[import-untyped]
except ModuleNotFoundError:  # a server for CPUs is installed without it
    pynvml = None


def gpus() -> list[Collector]:
    """Return a collector if there is a GPU, else none."""
    if pynvml is None:
        return []
    try:
        pynvml.nvmlInit()
        return [_Gpus(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


class _Gpus(Collector):
    def __init__(self, count: int) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("penult_gpu_memory_used_bytes", "Memory in use, by all processes.", labels=["gpu"])
        total = GaugeMetricFamily("penult_gpu_memory_total_bytes", "Total memory of the GPU.", labels=["gpu"])
        busy = GaugeMetricFamily("penult_gpu_utilization_ratio", "Share of time with a kernel running.", labels=["gpu"])
        for number in range(self._count):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(number)
                memory, rates = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetUtilizationRates(handle)
            except pynvml.NVMLError:  # a GPU that fails must not hide the others' metrics
                continue
            used.add_metric([str(number)], memory.used)
            total.add_metric([str(number)], memory.total)
            busy.add_metric([str(number)], rates.gpu / 100)
        yield from (used, total, busy)
