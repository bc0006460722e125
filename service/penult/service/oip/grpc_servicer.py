"""dataplane.GRPCInferenceService: the Open Inference Protocol v2 over gRPC, with Triton's extensions that clients use.

Only translation between messages and the plain values of dataplane.py. Shared memory, tracing and log settings are left
out on purpose: the generated base answers UNIMPLEMENTED.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from penult.bundle.errors import PenultError
from penult.oip import grpc_service_pb2 as pb
from penult.oip import grpc_service_pb2_grpc, model_config_pb2
from penult.service.errors import InvalidRequest
from penult.service.grpc.streaming import Context, expires, in_order
from penult.service.oip import dataplane
from penult.service.oip.abstained import MAX_ERROR, max_error_of
from penult.service.oip.dataplane import DataPlane, InferAnswer, InferRequest, Output, Wanted
from penult.service.oip.tensors import BASE64, BOOL, BYTES, FP32, UINT8, Tensor

# Its coroutine runs on the thread that received the request, see penult.service.suspension.
DIRECT = ("ModelInfer",)
SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_CONTENTS = {BYTES: "bytes_contents", UINT8: "uint_contents", FP32: "fp32_contents"}


class OipServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """The RPCs of the protocol. Errors are raised as PenultError; the interceptor maps them."""

    def __init__(self, core: DataPlane) -> None:
        """Answer with this."""
        self._core = core

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Say that the process answers, also while it drains."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Return whether requests should be sent here."""
        return pb.ServerReadyResponse(ready=self._core.is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Return whether a model answers requests."""
        return pb.ModelReadyResponse(ready=self._core.is_model_ready(request.name, request.version))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Return the server's name, version and extensions."""
        return pb.ServerMetadataResponse(**asdict(dataplane.server_metadata()))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Return a model's inputs and outputs."""
        return pb.ModelMetadataResponse(**asdict(self._core.metadata(request.name, request.version)))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Return a model's inputs and outputs as Triton's configuration."""
        config = asdict(self._core.config(request.name, request.version))
        return pb.ModelConfigResponse(config=model_config_pb2.ModelConfig(**config))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run one request."""
        answer = await self._core.infer(_request(request), expires(context))
        # In the form that the request came in: who sends typed contents may not know the raw ones.
        is_raw = bool(request.raw_input_contents) or not request.inputs
        return _response(answer, request.id, is_raw)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Run request by request; one that fails gives its error in its place, and the stream goes on."""

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                return pb.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))
            except PenultError as error:
                failed = pb.ModelInferResponse(model_name="", id=request.id)
                return pb.ModelStreamInferResponse(error_message=error.message, infer_response=failed)

        async for response in in_order(request_iterator, answer):
            yield response

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Return what models have answered since they were loaded."""
        found = self._core.statistics(request.name, request.version)
        return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(**asdict(each)) for each in found])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """List the versions that the repository knows of."""
        entries = self._core.index(request.ready)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=e.name, version=str(e.version), state=e.state, reason=e.reason
                )
                for e in entries
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Bring a model up to date with its folder, where the operator allows it."""
        await self._core.load(request.model_name, bool(request.parameters))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Serve a model no longer, where the operator allows it."""
        await self._core.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _request(request: pb.ModelInferRequest) -> InferRequest:
    return InferRequest(
        model=request.model_name,
        version=request.model_version,
        inputs=_tensors(request),
        outputs=[Wanted(o.name, _number(o.parameters, "classification")) for o in request.outputs],
        scorer=request.parameters["scorer"].string_param if "scorer" in request.parameters else "",
        max_error=max_error_of(_value(request.parameters[MAX_ERROR])) if MAX_ERROR in request.parameters else 0.0,
    )


def _tensors(request: pb.ModelInferRequest) -> list[Tensor]:
    raw = request.raw_input_contents
    if raw and (len(raw) != len(request.inputs) or any(tensor.HasField("contents") for tensor in request.inputs)):
        raise InvalidRequest("INPUT_CONTENTS", "give raw contents for every input and typed contents for none")
    return [
        Tensor(t.name, t.datatype, tuple(t.shape), raw[place] if raw else _typed(t), _is_base64(t))
        for place, t in enumerate(request.inputs)
    ]


def _is_base64(tensor: pb.ModelInferRequest.InferInputTensor) -> bool:
    """Return whether the request declares base64, as those of MLServer's clients do."""
    return tensor.parameters["content_type"].string_param == BASE64 if "content_type" in tensor.parameters else False


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> Sequence[Any]:
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    wanted = _CONTENTS.get(tensor.datatype, "")
    if set(filled) - {wanted}:
        raise InvalidRequest("INPUT_CONTENTS", f"the contents of {tensor.datatype[:16]!r} are not {filled[0]}")
    return getattr(tensor.contents, wanted) if wanted else []


def _number(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    if name not in parameters:
        return 0
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest("PARAMETER", f"the parameter {name} is a whole number")
    return int(getattr(parameters[name], kind))


def _value(parameter: pb.InferParameter) -> object:
    """Return the value of a parameter, None if it has none."""
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None


def _response(answer: InferAnswer, id_: str, is_raw: bool) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(
        model_name=answer.model.name,
        model_version=str(answer.model.version),
        id=id_,
        parameters={
            "fingerprint": pb.InferParameter(string_param=answer.model.fingerprint),
            "scorer": pb.InferParameter(string_param=answer.scorer),
        },
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=o.name, datatype=o.datatype, shape=o.shape, contents=None if is_raw else _contents(o)
            )
            for o in answer.outputs
        ],
        raw_output_contents=[output.raw for output in answer.outputs] if is_raw else [],
    )


def _contents(output: Output) -> pb.InferTensorContents:
    if isinstance(output.values, np.ndarray):
        values: list[Any] = output.values.ravel().tolist()
        if output.datatype == BOOL:
            return pb.InferTensorContents(bool_contents=values)
        return pb.InferTensorContents(fp32_contents=values)
    return pb.InferTensorContents(bytes_contents=output.texts)
