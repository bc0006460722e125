"""Serve with bare gRPC and no model, to compare with: `python bench/bare_servers.py sync|aio`.

Both parse a request, make the network's input of each image, take the highest of ten made-up scores and answer. They
know no metrics, limits, deadlines, novelty or fair turns.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.oip import grpc_service_pb2 as oip
from penult.v1 import penult_pb2 as pb

SPEC, NAMES, SCORES = Preprocess(), [f"class {number}" for number in range(10)], np.arange(10, dtype=np.float32)
OPTIONS, THREADS = [("grpc.max_receive_message_length", 64 << 20)], 2


def classify(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """Return a made-up label for each image."""
    results = []
    for image in request.images:
        if image.encoded:
            crop_encoded(image.encoded, SPEC)
        else:
            np.frombuffer(image.raw.rgb, np.uint8).reshape(image.raw.height, image.raw.width, 3)
        best = int(SCORES.argmax())
        label = pb.Classification(label=NAMES[best], score=float(SCORES[best]))
        results.append(pb.ClassifyResult(classification=label))
    return pb.ClassifyResponse(results=results)


def infer(request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """Return the made-up scores of each image."""
    shape = list(request.inputs[0].shape)
    np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)
    output = oip.ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=[shape[0], len(SCORES)])
    return oip.ModelInferResponse(outputs=[output], raw_output_contents=[SCORES.tobytes() * shape[0]])


ANSWERS = {
    "/penult.v1.PenultService/Classify": (classify, pb.ClassifyRequest, pb.ClassifyResponse),
    "/inference.GRPCInferenceService/ModelInfer": (infer, oip.ModelInferRequest, oip.ModelInferResponse),
}
STREAM = (
    "/penult.v1.PenultService/StreamClassify",
    pb.ClassifyRequest.FromString,
    pb.ClassifyResponse.SerializeToString,
)


class Handlers(grpc.GenericRpcHandler):
    """The three methods, for either kind of server."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Answer on this loop, or synchronously without one."""
        pool = ThreadPoolExecutor(THREADS)

        def unary(answer: object) -> object:
            async def on_loop(request: object, _: object) -> object:
                return await loop.run_in_executor(pool, answer, request)

            return on_loop if loop else lambda request, _: answer(request)

        async def stream(requests: AsyncIterator[pb.ClassifyRequest], _: object) -> AsyncIterator[pb.ClassifyResponse]:
            async for request in requests:
                yield await loop.run_in_executor(pool, classify, request)

        def stream_sync(requests: Iterator[pb.ClassifyRequest], _: object) -> Iterator[pb.ClassifyResponse]:
            yield from map(classify, requests)

        self._methods = {
            name: grpc.unary_unary_rpc_method_handler(unary(answer), asked.FromString, answered.SerializeToString)
            for name, (answer, asked, answered) in ANSWERS.items()
        }
        name, *codecs = STREAM
        self._methods[name] = grpc.stream_stream_rpc_method_handler(stream if loop else stream_sync, *codecs)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of a method."""
        return self._methods.get(details.method)


async def serve_aio() -> None:
    """Serve with grpc.aio; a pool of threads answers."""
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((Handlers(asyncio.get_running_loop()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def serve_sync() -> None:
    """Serve with the synchronous server."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve_aio()) if sys.argv[1] == "aio" else serve_sync()
