"""Recover from device failures: rebuild the model beside the old one, and be not ready until the device works.

A batch has been tried twice when `on_result` is called. Three failures in a row, of any model, mean that the device
fails: the server is not ready, and keeps running requests to notice when the device works again. If a GPU does not
recover, the process exits: only a new process can use CUDA again, and the operator's supervisor starts one.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from penult.service.models.loader import ServedModel
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)

_MAX_FAILURES = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_MAX_REBUILDS = 5
# At least so long between two rebuilds of a version: loading is expensive.
_REST_S = 30.0
# Between probes of an idle GPU: a GPU that is gone is noticed within 5 seconds.
PROBE_S = 2.0


class Recovery:
    """Rebuilds models that fail on their device. Runs on the event loop."""

    def __init__(
        self,
        rebuild: Callable[[ServedModel], Awaitable[bool]],
        on_change: Callable[[], object],
        leave: Callable[[], object],
        metrics: Metrics,
    ) -> None:
        """Call `rebuild` for a model that failed, `on_change` when `is_well` changes, `leave` if no rebuild helps."""
        self._rebuild = rebuild
        self._on_change = on_change
        self._leave = leave
        self._metrics = metrics
        self._in_a_row = 0
        self._rebuilding: dict[ServedModel, asyncio.Task[None]] = {}
        self._rests_until: dict[tuple[str, int], float] = {}

    @property
    def is_well(self) -> bool:
        """Whether the device works, according to the last runs."""
        return self._in_a_row < _MAX_FAILURES

    def on_result(self, model: ServedModel, works: bool) -> None:
        """Record that a batch of a model failed twice, or that a batch worked again after a failure."""
        if works:
            self._recovered()
            return
        self._in_a_row += 1
        if self._in_a_row == _MAX_FAILURES:
            log.error("the device failed %d times in a row: not ready until it works again", _MAX_FAILURES)
            self._on_change()
        if model not in self._rebuilding:
            self._rebuilding[model] = asyncio.create_task(self._rebuild_until_well(model))

    async def probe(self, models: Callable[[], Iterable[ServedModel]], probe: Callable[[ServedModel], object]) -> None:
        """Probe the models on GPUs for ever, so that a GPU that is gone is noticed without requests."""
        while True:
            await asyncio.sleep(PROBE_S)
            for model in models():
                if not model.is_on_cpu:
                    probe(model)

    def _recovered(self) -> None:
        was_well, self._in_a_row = self.is_well, 0
        if not was_well:
            log.info("the device works again: ready")
            self._on_change()

    async def _rebuild_until_well(self, model: ServedModel) -> None:
        """Rebuild the model with growing pauses; leave if a GPU does not recover."""
        wait, failed, version = _FIRST_WAIT_S, 0, (model.name, model.version)
        try:
            await asyncio.sleep(self._rests_until.get(version, 0.0) - time.monotonic())
            while not await self._rebuild(model):
                self._metrics.device_events.labels("rebuild_failed").inc()
                failed += 1
                if failed >= _MAX_REBUILDS and not model.is_on_cpu:
                    log.error(
                        "%s version %d could not be rebuilt %d times: the server exits",
                        model.name,
                        model.version,
                        failed,
                    )
                    self._leave()
                    return
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
            self._rests_until[version] = time.monotonic() + _REST_S
            self._metrics.device_events.labels("rebuilt").inc()
            self._recovered()
        finally:
            del self._rebuilding[model]
