"""Answer the Open Inference Protocol v2 in plain values, the same for gRPC and HTTP.

Inputs are encoded images or cropped pixels. Outputs are logits, probabilities, descriptors, SVM scores and labels of
one forward pass. A model of one class has novelty instead of logits and SVM scores. Requests use the same pipeline as
those of penult.v1.
"""

import asyncio
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from penult.bundle.manifest import DENSE, NOVELTY, SCORERS, SVM, parse_version
from penult.bundle.scores import Floats
from penult.service.errors import InvalidRequest, NotAllowed, ServiceError
from penult.service.inference.abstaining import AnswerLimits, answer_limits
from penult.service.inference.class_maps import RequestMaps
from penult.service.inference.pipeline import Pipeline
from penult.service.inference.recent_answers import RecentAnswers
from penult.service.inference.scoring import Scoring, check_has
from penult.service.models.loader import ServedModel
from penult.service.models.registry import IndexEntry, ModelRegistry
from penult.service.oip.abstained import ABSTAINED, abstained_specs
from penult.service.oip.class_map import CLASS_MAP, class_map_specs, maps_for, stacked_maps
from penult.service.oip.statistics import ModelStatistics, statistics
from penult.service.oip.tensors import (
    BOOL,
    BYTES,
    FP32,
    IMAGE,
    PIXELS,
    UINT8,
    Tensor,
    TensorSpec,
    as_strings,
    classification,
    has_text,
    read_photos,
)
from penult.service.suspension import on_event_loop

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
LOGITS, PROBABILITIES, DESCRIPTOR, SVM_SCORES, LABELS = "logits", "probabilities", "descriptor", "svm_scores", "labels"
IS_NOVEL = "is_novel"
_SCORERS = (*SCORERS, NOVELTY)
# Outputs that have no number per class.
_WHOLE = (DESCRIPTOR, LABELS, NOVELTY, IS_NOVEL, ABSTAINED, CLASS_MAP)


class ModelControl(Protocol):
    """Loads and unloads models by name."""

    async def load(self, name: str) -> None:
        """Load or update a model from its folder; raise ServiceError."""
        ...

    async def unload(self, name: str) -> None:
        """Stop serving a model; raise ServiceError."""
        ...


@dataclass(frozen=True)
class Wanted:
    """A requested output; with `classes`, as that many best "value:index:label" (Triton's extension)."""

    name: str
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """One request; `version` "" stands for the newest, no `outputs` for all, `scorer` "" for the model's default.

    `max_error` names the operating point; 0 stands for the default one.
    """

    model: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Wanted] = ()
    scorer: str = ""
    max_error: float = 0.0


@dataclass(frozen=True)
class Output:
    """A tensor that goes out: float32 [N, …], bool [N], or texts [N] or [N, k]."""

    name: str
    values: Floats | NDArray[np.bool_] | list[bytes] | list[list[bytes]]

    @property
    def datatype(self) -> str:
        """The protocol's name of the element type."""
        if not isinstance(self.values, np.ndarray):
            return BYTES
        return BOOL if self.values.dtype == np.bool_ else FP32

    @property
    def shape(self) -> list[int]:
        """The sides of the tensor."""
        return list(np.shape(self.values)) if isinstance(self.values, np.ndarray) else _sides(self.values)

    @property
    def texts(self) -> list[bytes]:
        """The elements of a tensor of texts, row by row."""
        assert not isinstance(self.values, np.ndarray)
        return [text for row in self.values for text in (row if isinstance(row, list) else [row])]

    @property
    def raw(self) -> bytes:
        """The elements in the protocol's raw form."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype("?" if self.datatype == BOOL else "<f4", copy=False).tobytes()
        return as_strings(self.texts)


@dataclass(frozen=True)
class InferAnswer:
    """What answered, and the outputs in the order asked for."""

    model: ServedModel
    scorer: str
    outputs: list[Output]


@dataclass(frozen=True)
class ServerMetadata:
    """The server's name, its version and the protocol's extensions that it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model's served versions, inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


@dataclass(frozen=True)
class ConfigOutput:
    """An output in Triton's configuration."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ConfigInput(ConfigOutput):
    """An input in Triton's configuration; a request gives one of them."""

    optional: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A model's inputs and outputs in the form of Triton's configuration."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigInput]
    output: list[ConfigOutput]


class DataPlane:
    """Answers the protocol's requests. Runs on the event loop, except for infer(), which may begin on any thread."""

    def __init__(
        self, repository: ModelRegistry, pipeline: Pipeline, control: ModelControl | None,
        is_ready: Callable[[], bool], request_max_images: int, answers: RecentAnswers | None = None,
    ) -> None:  # fmt: skip
        """Answer from these; with `control` None, clients cannot load or unload models."""
        self._repository, self._pipeline, self._request_max_images = repository, pipeline, request_max_images
        self._control, self.is_ready, self._answers = control, is_ready, answers

    async def infer(self, request: InferRequest, expires: float) -> InferAnswer:
        """Run a request's images; `expires` by time.perf_counter(). Raises ImageError and ServiceError."""
        model = self.model(request.model, request.version)
        read = partial(read_photos, request.inputs, model.manifest.preprocess.crop, self._request_max_images)
        if has_text(request.inputs, self._request_max_images):
            await on_event_loop()
            photos = await asyncio.to_thread(read)
        else:
            photos = read()
        scorer = _scorer(model, request.scorer)
        wanted = request.outputs or [Wanted(spec.name) for spec in outputs(model) if spec.name != CLASS_MAP]
        for output in wanted:
            _check_output(model, output)
        limits = answer_limits(model, scorer, request.max_error)
        best: list[tuple[str, float] | None] = []
        maps = maps_for(model, scorer, [output.name for output in wanted], len(photos))
        make = partial(_make, scorer, limits, maps, wanted, best)
        made = await self._pipeline.infer(model, photos, make, expires, maps)
        if self._answers and best:
            self._answers.remember_best(model, best, photos, scorer=scorer)
        return InferAnswer(model, scorer, made)

    def model(self, name: str, version: str) -> ServedModel:
        """Return a served model; raise ServiceError."""
        number = parse_version(version) if version else 0
        if number is None:
            raise InvalidRequest("MODEL_VERSION", "a version is a whole number above 0, or left out for the newest")
        return self._repository.get(name, number)

    def is_model_ready(self, name: str, version: str) -> bool:
        """Return whether a model can answer requests now."""
        try:
            self.model(name, version)
        except ServiceError:
            return False
        return self.is_ready()

    def metadata(self, name: str, version: str) -> ModelMetadata:
        """Return a model's versions, inputs and outputs; raise ServiceError."""
        model = self.model(name, version)
        versions = [str(each.version) for each in self._repository.versions(model.name)]
        return ModelMetadata(model.name, versions, PLATFORM, inputs(model), outputs(model))

    def config(self, name: str, version: str) -> ModelConfig:
        """Return a model's inputs and outputs as Triton's configuration; raise ServiceError."""
        model = self.model(name, version)
        return ModelConfig(
            name=model.name,
            platform=PLATFORM,
            backend="onnxruntime",
            max_batch_size=0,
            input=[ConfigInput(spec.name, _config_type(spec), spec.shape) for spec in inputs(model)],
            output=[ConfigOutput(spec.name, _config_type(spec), spec.shape) for spec in outputs(model)],
        )

    def statistics(self, name: str, version: str) -> list[ModelStatistics]:
        """Return how often models have answered and run, for one version, all versions of a name, or all models."""
        if name and version:
            models = [self.model(name, version)]
        elif name:
            models = self._repository.versions(self.model(name, "").name)
        else:
            models = self._repository.all()
        return [statistics(model, *self._pipeline.statistics(model)) for model in models]

    def index(self, only_ready: bool) -> list[IndexEntry]:
        """Return the versions that the repository knows of."""
        return [entry for entry in self._repository.index() if entry.state == "READY" or not only_ready]

    async def load(self, name: str, has_parameters: bool) -> None:
        """Load a model's newest good version from the repository. Raises ServiceError."""
        if has_parameters:
            raise InvalidRequest("LOAD_PARAMETERS", "models come from the repository folder only; leave out parameters")
        await self._allowed().load(name)

    async def unload(self, name: str) -> None:
        """Serve a model no longer. Raises ServiceError."""
        await self._allowed().unload(name)

    def _allowed(self) -> ModelControl:
        if self._control is None:
            raise NotAllowed("MODEL_CONTROL", "loading and unloading are switched off; --model-control on allows them")
        return self._control


def server_metadata() -> ServerMetadata:
    """Return the server's metadata."""
    return ServerMetadata("penult", importlib.metadata.version("penult"), EXTENSIONS)


def _config_type(spec: TensorSpec) -> str:
    """Return the element type as Triton's configuration has it, which calls BYTES a string."""
    return "TYPE_STRING" if spec.datatype == BYTES else f"TYPE_{spec.datatype}"


def inputs(model: ServedModel) -> list[TensorSpec]:
    """Return what a request gives one of."""
    crop = model.manifest.preprocess.crop
    return [TensorSpec(IMAGE, BYTES, (-1,)), TensorSpec(PIXELS, UINT8, (-1, crop, crop, 3))]


def outputs(model: ServedModel) -> list[TensorSpec]:
    """Return what a request can ask for."""
    manifest, classes = model.manifest, len(model.manifest.classes)
    if NOVELTY in model.scorers:
        return [
            TensorSpec(PROBABILITIES, FP32, (-1, 1)),
            TensorSpec(NOVELTY, FP32, (-1,)),
            TensorSpec(IS_NOVEL, BOOL, (-1,)),
            TensorSpec(DESCRIPTOR, FP32, (-1, manifest.descriptor_length)),
            TensorSpec(LABELS, BYTES, (-1,)),
        ]
    found = [
        TensorSpec(LOGITS, FP32, (-1, manifest.logits_length)),
        TensorSpec(PROBABILITIES, FP32, (-1, classes)),
        TensorSpec(DESCRIPTOR, FP32, (-1, manifest.descriptor_length)),
    ]
    if SVM in model.scorers:
        found.append(TensorSpec(SVM_SCORES, FP32, (-1, classes)))
    return [*found, TensorSpec(LABELS, BYTES, (-1,)), *class_map_specs(model), *abstained_specs(model)]


def _scorer(model: ServedModel, asked: str) -> str:
    if asked and asked not in _SCORERS:
        raise InvalidRequest("SCORER_UNKNOWN", f"the parameter scorer is {' or '.join(_SCORERS)}, or left out")
    scorer = asked or model.manifest.default_scorer
    check_has(model, scorer)
    return scorer


def _check_output(model: ServedModel, output: Wanted) -> None:
    if model.manifest.has_one_class:
        known = [spec.name for spec in outputs(model)]
    else:
        others = (*class_map_specs(model), *abstained_specs(model))
        known = [LOGITS, PROBABILITIES, DESCRIPTOR, SVM_SCORES, LABELS, *(spec.name for spec in others)]
    if output.name not in known:
        raise InvalidRequest("OUTPUT_UNKNOWN", f"there is no output {output.name[:64]!r}; there is {', '.join(known)}")
    if output.name == SVM_SCORES:
        check_has(model, SVM)
    if output.classes < 0 or (output.classes and output.name in _WHOLE):
        raise InvalidRequest("OUTPUT_CLASSIFICATION", f"{output.name} cannot be given as that many best classes")


def _make(
    scorer: str, limits: AnswerLimits | None, maps: RequestMaps | None, wanted: Sequence[Wanted],
    best: list[tuple[str, float] | None],
    scoring: Scoring, logits: Floats, descriptors: Floats, distances: Floats | None,
) -> list[Output]:  # fmt: skip
    """Return the outputs asked for; `best` gets the best class of each image if an output needs classes."""
    names = {output.name for output in wanted}
    needs_classes = bool(names & {PROBABILITIES, LABELS, ABSTAINED})
    made: dict[str, Floats | NDArray[np.bool_] | None] = {LOGITS: logits, DESCRIPTOR: descriptors}
    made[CLASS_MAP] = stacked_maps(maps, len(logits)) if maps else None
    if SVM_SCORES in names or (needs_classes and scorer == SVM):
        made[SVM_SCORES] = svm_scores = scoring.svm_scores(descriptors)
    if scorer == NOVELTY:
        found = scoring.record_by_novelty(distances)
        made |= {PROBABILITIES: found.probabilities, NOVELTY: distances, IS_NOVEL: found.scores[:, 0] < 0}
        best += found.best()
    elif needs_classes:
        found = scoring.record(scorer, logits if scorer == DENSE else svm_scores)
        made[PROBABILITIES] = found.probabilities
        best += found.best()
        made[ABSTAINED] = scoring.withheld(limits, found, distances) if ABSTAINED in names else None
    return [
        Output(output.name, [each[0].encode() for each in best if each])
        if output.name == LABELS
        else Output(output.name, _best(made[output.name], scoring.model, output.classes))
        for output in wanted
    ]


def _best(values: Any, model: ServedModel, count: int) -> Any:
    return classification(values, model.manifest.classes, count) if count else values


def _sides(texts: list[bytes] | list[list[bytes]]) -> list[int]:
    return [len(texts), len(texts[0])] if texts and isinstance(texts[0], list) else [len(texts)]
