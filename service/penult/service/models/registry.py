"""Models in memory, by name and version, and the reasons why other versions are not served.

get() is for any thread; what it reads is replaced and never changed. All else is for the event loop only.
"""

from dataclasses import dataclass

from penult.bundle.manifest import is_model_name
from penult.service.errors import InvalidRequest, NotFound, NotReady
from penult.service.models.loader import ServedModel

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
_RETRY_MS = 1000


@dataclass(frozen=True)
class IndexEntry:
    """One version in the repository: its state, and a stable reason if it is not served."""

    name: str
    version: int
    state: str
    reason: str = ""


class ModelRegistry:
    """The models that requests can use."""

    def __init__(self) -> None:
        """Serve nothing yet."""
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._others: dict[tuple[str, int], IndexEntry] = {}
        self.is_started = False

    def serve(self, model: ServedModel) -> None:
        """Add a model, in place of one with the same name and version."""
        versions = self._models.get(model.name, {})
        ordered = dict(sorted({**versions, model.version: model}.items()))
        self._models = {**self._models, model.name: ordered}
        self._others.pop((model.name, model.version), None)

    def forget(self, model: ServedModel) -> None:
        """Remove a model; another object of the same name and version stays."""
        versions = {n: other for n, other in self._models.get(model.name, {}).items() if other is not model}
        others = {name: served for name, served in self._models.items() if name != model.name}
        self._models = {**others, model.name: versions} if versions else others

    def note(self, name: str, version: int, state: str, reason: str = "") -> None:
        """Record the state of a version that is not served, for index()."""
        if version not in self._models.get(name, {}):
            self._others[name, version] = IndexEntry(name, version, state, reason)

    def keep_notes(self, name: str, versions: set[int]) -> None:
        """Drop the records of a model's versions that are not in `versions`: their folders are gone."""
        self._others = {key: entry for key, entry in self._others.items() if key[0] != name or key[1] in versions}

    def get(self, name: str, version: int) -> ServedModel:
        """Return a model; "" stands for the only one, 0 for the newest version. Raises NotFound, NotReady."""
        if name and not is_model_name(name):
            raise InvalidRequest("MODEL_NAME", "a model name is 1 to 64 letters, digits, '_' and '-'")
        if not self.is_started:
            raise NotReady("LOADING", "the models are still loading; try again soon", _RETRY_MS)
        models = self._models
        if not models:
            raise NotReady("NO_MODELS", "no model is served at the moment; try again later", _RETRY_MS)
        if not name and len(models) > 1:
            raise NotFound("MODEL_UNNAMED", f"several models are served; name one of {self._served()}")
        versions = models.get(name) if name else next(iter(models.values()))
        if versions is None:
            raise NotFound("MODEL_UNKNOWN", f"no such model is served; there is {self._served()}")
        if version and version not in versions:
            name = next(iter(versions.values())).name
            numbers = ", ".join(map(str, versions))
            raise NotFound("VERSION_UNKNOWN", f"of {name}, version {numbers} is served and no other")
        return versions[version or max(versions)]

    def _served(self) -> str:
        return ", ".join(sorted(self._models))

    def versions(self, name: str) -> list[ServedModel]:
        """Return the versions of a model, oldest first; empty if it is not served."""
        return list(self._models.get(name, {}).values())

    def all(self) -> list[ServedModel]:
        """Return every model, by name, then version."""
        return [model for _, versions in sorted(self._models.items()) for model in versions.values()]

    def index(self) -> list[IndexEntry]:
        """Return all known versions, served or not, by name, then version."""
        served = [IndexEntry(model.name, model.version, READY) for model in self.all()]
        return sorted([*served, *self._others.values()], key=lambda entry: (entry.name, entry.version))
