"""Deploy and unload models while requests run: pipeline, registry and metrics in the right order."""

from collections.abc import Awaitable, Callable

from penult.service.inference.pipeline import Pipeline
from penult.service.inference.shadow import Shadows
from penult.service.lifecycle.events import Events
from penult.service.models.loader import ServedModel
from penult.service.models.registry import UNAVAILABLE, ModelRegistry
from penult.service.observability.metrics import Metrics

# Why the index of the repository calls a version unavailable.
_SHADOW = "SHADOW"


class ModelDeployer:
    """Makes models available to requests, and unloads them. Everything here runs on the event loop."""

    def __init__(
        self,
        registry: ModelRegistry,
        pipeline: Pipeline,
        metrics: Metrics,
        on_change: Callable[[], None],
        events: Events | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        """Call `on_change` after each change of what is served; `shadows` takes the versions that no client gets."""
        self.registry = registry
        self._pipeline = pipeline
        self._metrics = metrics
        self._on_change = on_change
        self.events = events or Events()
        self._shadows = shadows

    def deploy(self, model: ServedModel) -> None:
        """Serve a model, in place of one with the same name and version."""
        if self._shadows and self._shadows.has(model.name, model.version):
            self._shadows.serve(model)
            self.registry.note(model.name, model.version, UNAVAILABLE, _SHADOW)
            self._metrics.reloads.labels("loaded").inc()
            self.events.add("loaded", model.name, model.version, "as a shadow: only its answers are compared")
            return
        # The pipeline first: a request that finds the model in the registry may use it at once.
        self._pipeline.serve(model)
        self.registry.serve(model)
        self._metrics.loaded(*_labels(model))
        self.events.add("loaded", model.name, model.version)
        self._on_change()

    def unload(self, model: ServedModel) -> Awaitable[None]:
        """Stop serving a model; the returned awaitable ends with the model's last request."""
        if self._shadows and self._shadows.has(model.name, model.version):
            self._metrics.reloads.labels("retired").inc()
            self.events.add("retired", model.name, model.version)
            return self._shadows.unload(model)
        self.registry.forget(model)
        self._metrics.retired(*_labels(model))
        self.events.add("retired", model.name, model.version)
        self._on_change()
        return self._pipeline.unload(model)

    def refused(self, name: str, version: int, reason: str) -> None:
        """Count and record a candidate that was rejected."""
        self._metrics.reloads.labels("refused").inc()
        self.events.add("refused", name, version, reason)


def _labels(model: ServedModel) -> tuple[str, ...]:
    """Return the labels of penult_model_info."""
    return (
        model.name, str(model.version), model.fingerprint, model.manifest.architecture, model.session.provider,
        "yes" if model.signer else "no",
    )  # fmt: skip
