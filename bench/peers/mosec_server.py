"""mosec: a process for each core, each with the graph. Its own options give the port: --address 127.0.0.1 --port N."""

import os

from graph import Graph
from mosec import Server, Worker

JPEG_HEAD = b"\xff\xd8\xff"


class Classifier(Worker):
    """One process."""

    def __init__(self) -> None:
        """Load the graph."""
        super().__init__()
        self._graph = Graph()

    def deserialize(self, data: bytes) -> bytes:
        """Return the body as it is."""
        return data

    def forward(self, data: bytes) -> list[dict[str, float]]:
        """Classify a JPEG, or crops one after the other."""
        crops = self._graph.decode(data)[None] if data.startswith(JPEG_HEAD) else self._graph.crops(data)
        return self._graph.classify(crops)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classifier, num=len(os.sched_getaffinity(0)))
    server.run()
