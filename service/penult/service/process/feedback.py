"""The parts of feedback, as the settings say, of a server alone and of a worker."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from penult.service.auth.tokens import Tokens
from penult.service.config import ServeConfig
from penult.service.http.feedback_route import FeedbackRoute
from penult.service.http.try_photo import TrySettings
from penult.service.inference.corrected_photos import CorrectedPhotos
from penult.service.inference.feedback import FeedbackDesk
from penult.service.inference.feedback_file import NAME, FeedbackFile
from penult.service.inference.feedback_peers import FeedbackPeers
from penult.service.inference.recent_answers import RecentAnswers
from penult.service.inference.shadow import Shadows
from penult.service.inference.unsure import KeepLimits
from penult.service.models.registry import ModelRegistry
from penult.service.observability.call import Envelope
from penult.service.observability.metrics import Metrics
from penult.service.observability.truths import Truths
from penult.service.observability.worker_windows import write_windows
from penult.service.process.worker import VARIABLE

_MIB = 20


def feedback_file(config: ServeConfig, shared: Path | None, truths: Truths) -> FeedbackFile:
    """Return the file of feedback; without --feedback, workers share one in their folder, which ends with them."""
    if config.feedback:
        return FeedbackFile(Path(config.feedback) / NAME, truths, config.feedback_max_mb << _MIB)
    return FeedbackFile(shared / NAME if shared else None, truths, config.feedback_max_mb << _MIB, is_durable=False)


class FeedbackParts:
    """What receives feedback, and what it needs."""

    def __init__(
        self, config: ServeConfig, metrics: Metrics, repository: ModelRegistry, shadows: Shadows | None
    ) -> None:
        """Read the file of feedback; raise ConfigError if it cannot be used."""
        self._config, self._metrics = config, metrics
        # The folder that a worker shares with the others; None for a server alone.
        self._shared = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None
        file = feedback_file(config, self._shared, metrics.truths)
        file.open()
        limits = self._photo_limits()
        photos = CorrectedPhotos(limits, metrics) if limits else None
        self.answers = RecentAnswers(config.feedback_answers, config.feedback_photos_mb << _MIB, shadows)
        self.desk = FeedbackDesk(self.answers, file, repository, photos)
        if shadows:
            self.desk.listeners.append(shadows.judge)
        self._peers = FeedbackPeers(self._shared, self.desk) if self._shared else None

    async def start(self, keep: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Let the other workers ask this one; `keep` runs what goes on in the background."""
        if self._peers and self._shared:
            await self._peers.start()
            keep(write_windows(self._metrics.windows, self._shared))

    async def close(self) -> None:
        """Write what waits, and leave the other workers."""
        if self._peers:
            self._peers.close()
        await asyncio.to_thread(self.desk.close)

    def route(self, tries: TrySettings, envelope: Envelope, tokens: Tokens | None) -> FeedbackRoute:
        """Return the route of the HTTP port."""
        return FeedbackRoute(tries, self._config.http, self.desk, envelope, tokens)

    def lines(self) -> Iterator[str]:
        """Yield what the log says at start about what is stored of callers."""
        if limits := self._photo_limits():
            yield (
                f"photos of callers whose right label they send are stored in {limits.folder}, at most "
                f"{limits.max_images:,} images and {limits.max_bytes >> _MIB:,} MiB (--feedback-photos-mb)"
            )

    def _photo_limits(self) -> KeepLimits | None:
        config = self._config
        if not config.feedback_photos_mb:
            return None
        return KeepLimits(
            Path(config.feedback), config.keep_unsure_below, config.keep_unsure_max_images,
            config.keep_unsure_max_mb << _MIB,
        )  # fmt: skip
