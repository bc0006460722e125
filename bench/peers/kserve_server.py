"""KServe's model server: a thread for each core runs the graph. Its own options give the ports: --grpc_port N."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from graph import FOLDER, Graph
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Classifier(Model):
    """The model."""

    def __init__(self, name: str) -> None:
        """Load the graph."""
        super().__init__(name)
        self._graph, self._threads = Graph(), ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self.ready = True

    async def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> object:
        """Classify on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._predict, payload)

    def _predict(self, payload: InferRequest) -> InferResponse:
        values = payload.inputs[0].as_numpy()
        crops = values if values.dtype == np.uint8 else np.stack([self._graph.decode(jpeg) for jpeg in values])
        texts = np.array([str(classes).encode() for classes in self._graph.classify(crops)], dtype=np.object_)
        output = InferOutput("classes", [len(texts)], "BYTES")
        output.set_data_from_numpy(texts, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    ModelServer(workers=1, enable_latency_logging=False).start([Classifier(FOLDER.parent.name)])
