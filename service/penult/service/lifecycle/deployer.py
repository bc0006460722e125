"""Where models are put on and taken off while requests come: pipeline, repository and metrics in the right order."""

from collections.abc import Awaitable, Callable

from penult.service.inference.pipeline import Pipeline
from penult.service.lifecycle.events import Events
from penult.service.models.loader import ServedModel
from penult.service.models.registry import ModelRegistry
from penult.service.observability.metrics import Metrics


class ModelDeployer:
    """Lets requests find models, and lets go of them. Everything here happens on the event loop."""

    def __init__(
        self,
        repository: ModelRegistry,
        pipeline: Pipeline,
        metrics: Metrics,
        on_change: Callable[[], None],
        events: Events | None = None,
    ) -> None:
        """Call `on_change` whenever a model came or went."""
        self.repository = repository
        self._pipeline, self._metrics, self._on_change = pipeline, metrics, on_change
        self.events = events or Events()

    def deploy(self, model: ServedModel) -> None:
        """Let requests find a model, in place of one with the same name and version."""
        # The pipeline first: whoever finds the model in the repository may use it at once.
        self._pipeline.serve(model)
        self.repository.serve(model)
        self._metrics.loaded(*_labels(model))
        self.events.add("loaded", model.name, model.version)
        self._on_change()

    def retire(self, model: ServedModel) -> Awaitable[None]:
        """Let no request find a model from now on; what is returned is done when its last one has ended."""
        self.repository.forget(model)
        self._metrics.retired(*_labels(model))
        self.events.add("retired", model.name, model.version)
        self._on_change()
        return self._pipeline.retire(model)

    def refused(self, name: str, version: int, reason: str) -> None:
        """Count a candidate that was refused, and why."""
        self._metrics.reloads.labels("refused").inc()
        self.events.add("refused", name, version, reason)


def _labels(model: ServedModel) -> tuple[str, ...]:
    """Return the labels of penult_model_info."""
    return (
        model.name, str(model.version), model.fingerprint, model.manifest.architecture, model.session.provider,
        "yes" if model.signer else "no",
    )  # fmt: skip
