"""A labelling page that is served: made-up photos, a real session and label file, the real server."""

import csv
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.fixtures.shapes import CLASSES, write_shapes
from threadpoolctl import threadpool_limits

from penult.export.data.splitting import Photo
from penult.label.labels_file import LabelsFile
from penult.label.pool import Pool
from penult.label.server import LabelServer
from penult.label.session import Session

WAIT_S = 60.0


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Learn as the command does: threads of linear algebra spin while they wait for each other on a busy machine."""
    with threadpool_limits(1):
        yield


@dataclass
class Served:
    """A page that is served; `client` has its cookie."""

    server: LabelServer
    session: Session
    labels: Path
    photos: Path
    client: httpx.Client

    @property
    def base(self) -> str:
        """The address without the token."""
        return f"http://127.0.0.1:{self.server.port}"

    def written(self) -> dict[str, str]:
        """Return image and label of each row of the label file."""
        with self.labels.open(newline="") as file:
            return {row["image"]: row["label"] for row in csv.DictReader(file)}

    def next(self, count: int = 1) -> list[dict]:
        """Return the next photos."""
        return self.client.get("/api/next", params={"count": count}).json()["items"]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Photos of shapes, with descriptors that tell the shapes apart."""
    root, chance = tmp_path_factory.mktemp("shapes"), np.random.default_rng(3)
    ids = tuple(sorted(write_shapes(root, 80, (80, 60))))
    centers = {name: chance.normal(size=16) for name in CLASSES}
    inputs = np.array([centers[id_.partition("/")[0]] + 0.4 * chance.normal(size=16) for id_ in ids], dtype=np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    photos = tuple(Photo(root / id_, -1, hashlib.sha256((root / id_).read_bytes()).hexdigest()) for id_ in ids)
    return Pool(root, ids, photos, inputs, np.arange(len(ids)), "made-up descriptors")


@contextmanager
def _serving(shapes: Pool, folder: Path) -> Iterator[Served]:
    labels = folder / "labels.csv"
    session = Session(shapes, LabelsFile(labels, shapes.root), CLASSES)
    server = LabelServer(session)
    thread = threading.Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=WAIT_S, trust_env=False) as client:
        client.get("/", params={"token": server.token})
        yield Served(server, session, labels, shapes.root, client)
    server.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    session.close()


@pytest.fixture
def served(shapes: Pool, tmp_path: Path) -> Iterator[Served]:
    """The page of a new label file."""
    with _serving(shapes, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def refusing(shapes: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a label file that stays empty: for tests of what is refused."""
    with _serving(shapes, tmp_path_factory.mktemp("refusing")) as found:
        yield found
        assert found.written() == {}
