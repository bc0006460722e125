"""Three real replicas, and every way to them."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.scale.fleet import Fleet
from tests.scale.ways import WAYS, Way


@pytest.fixture(scope="session")
def photo(encode) -> bytes:
    """A photo that is bright."""
    return encode(230)


@pytest.fixture(scope="session")
def shared_fleet(start_server, quick) -> Fleet:
    """Replicas that tests end and start anew."""
    return Fleet(start_server, quick, "--lookup", "off")


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """Replicas that all serve when a test begins."""
    shared_fleet.restore()
    return shared_fleet


@pytest.fixture(params=[("addresses", "dns"), ("haproxy", "nginx")], ids="-".join)
def ways(request, fleet: Fleet, tmp_path: Path) -> Iterator[dict[str, Way]]:
    """Ways to the replicas by name: those of a client alone, then those through a proxy."""
    with ExitStack() as stack:
        opened = {}
        for name in request.param:
            (tmp_path / name).mkdir()
            opened[name] = WAYS[name](fleet, tmp_path / name)
            stack.callback(opened[name].close)
        yield opened
