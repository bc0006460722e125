"""Fixtures of the attacks: a repository whose model takes no time, and a photo for it."""

from pathlib import Path

import pytest
from tests.attacks.light_model import publish_light
from tests.attacks.mix import grey


@pytest.fixture(scope="session")
def light(tmp_path_factory) -> Path:
    """A repository whose model takes no time: it hides nothing of what an attack costs."""
    root = tmp_path_factory.mktemp("light")
    publish_light(root)
    return root


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A photo that is bright."""
    return grey(230)
