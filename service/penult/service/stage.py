"""Where models are put on and taken off while requests come: pipeline, repository and metrics in the right order."""

from collections.abc import Awaitable, Callable

from penult.service.loading import ServedModel
from penult.service.metrics import Metrics
from penult.service.pipeline import Pipeline
from penult.service.repository import Repository


class Stage:
    """Lets requests find models, and lets go of them. Everything here happens on the event loop."""

    def __init__(
        self, repository: Repository, pipeline: Pipeline, metrics: Metrics, on_change: Callable[[], None]
    ) -> None:
        """Call `on_change` whenever a model came or went."""
        self.repository = repository
        self._pipeline, self._metrics, self._on_change = pipeline, metrics, on_change

    def take_up(self, model: ServedModel) -> None:
        """Let requests find a model, in place of one with the same name and version."""
        # The pipeline first: whoever finds the model in the repository may use it at once.
        self._pipeline.serve(model)
        self.repository.serve(model)
        self._metrics.took_up(*_labels(model))
        self._on_change()

    def retire(self, model: ServedModel) -> Awaitable[None]:
        """Let no request find a model from now on; what is returned is done when its last one has ended."""
        self.repository.forget(model)
        self._metrics.retired(*_labels(model))
        self._on_change()
        return self._pipeline.retire(model)

    def refused(self) -> None:
        """Count a candidate that was refused."""
        self._metrics.reloads.labels("refused").inc()


def _labels(model: ServedModel) -> tuple[str, ...]:
    """Return the labels of penult_model_info."""
    return (
        model.name, str(model.version), model.fingerprint, model.manifest.architecture, model.session.provider, "no"
    )  # fmt: skip
