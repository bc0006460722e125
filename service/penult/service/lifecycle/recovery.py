"""When the device fails: the model is built anew beside the old one, and readiness goes until it works again.

A batch was tried twice when this hears of it. Three failures in a row, of any model, mean that the device is not well:
the server is not ready then, and goes on trying what still comes, for that is how it notices. Where a GPU does not come
back, the process leaves: what CUDA has lost, only a new process gets back, and whoever runs it starts one.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from penult.service.models.loader import ServedModel
from penult.service.observability.metrics import Metrics
from penult.service.runtime.session import CPU

log = logging.getLogger(__name__)

_MAX_FAILURES = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_MAX_REBUILDS = 5
# From one rebuild of a version to the next: loading is no cheap answer to whatever makes a batch fail.
_REST_S = 30.0
# Between runs for nobody on a GPU that had nothing to do: one that is gone is noticed within 5 seconds.
PULSE_S = 2.0


class Recovery:
    """Hears how models fare on their device, and acts. Runs on the event loop."""

    def __init__(
        self,
        rebuild: Callable[[ServedModel], Awaitable[bool]],
        on_change: Callable[[], object],
        leave: Callable[[], object],
        metrics: Metrics,
    ) -> None:
        """Call `rebuild` for a model that failed, `on_change` when wellness changes, `leave` where nothing helps."""
        self._rebuild, self._on_change, self._leave, self._metrics = rebuild, on_change, leave, metrics
        self._in_a_row = 0
        self._rebuilding: dict[ServedModel, asyncio.Task[None]] = {}
        self._rests_until: dict[tuple[str, int], float] = {}

    @property
    def is_well(self) -> bool:
        """Whether the device works, as far as the last runs tell."""
        return self._in_a_row < _MAX_FAILURES

    def hear(self, model: ServedModel, works: bool) -> None:
        """Note that a batch of a model failed twice, or that one worked again after that."""
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
        """Run something on every GPU now and then, for ever, so that one that is gone is noticed without requests."""
        while True:
            await asyncio.sleep(PULSE_S)
            for model in models():
                if model.session.provider != CPU:
                    probe(model)

    def _recovered(self) -> None:
        was_well, self._in_a_row = self.is_well, 0
        if not was_well:
            log.info("the device works again: ready")
            self._on_change()

    async def _rebuild_until_well(self, model: ServedModel) -> None:
        """Build the model anew, ever more patiently; leave where a GPU does not come back."""
        wait, failed, version = _FIRST_WAIT_S, 0, (model.name, model.version)
        try:
            await asyncio.sleep(self._rests_until.get(version, 0.0) - time.monotonic())
            while not await self._rebuild(model):
                self._metrics.device_events.labels("rebuild_failed").inc()
                failed += 1
                if failed >= _MAX_REBUILDS and model.session.provider != CPU:
                    log.error(
                        "%s version %d could not be built anew %d times: leaving", model.name, model.version, failed
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
