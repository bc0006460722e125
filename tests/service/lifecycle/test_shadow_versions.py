"""Which version is a shadow and which one clients get, as the repository changes."""

import asyncio
import shutil

import pytest
from prometheus_client import CollectorRegistry

from penult.service.config import ServeConfig
from penult.service.errors import ConfigError
from penult.service.inference.pipeline import Pipeline
from penult.service.lifecycle.deployer import ModelDeployer
from penult.service.lifecycle.poller import RepositoryPoller
from penult.service.models.loader import Placement, load, load_shadow
from penult.service.models.registry import ModelRegistry
from penult.service.observability.metrics import Metrics
from penult.service.process import wiring


class Repository:
    """A poller with shadows, and what it deploys."""

    def __init__(self, root, shadow: str, pin: str = "") -> None:
        config = ServeConfig(models=root, shadow=shadow, pin=pin)
        self.metrics, self.registry = Metrics(CollectorRegistry()), ModelRegistry()
        self.pipeline = Pipeline(wiring.inference_limits(config), self.metrics)
        self.shadows = wiring.shadows(config, self.pipeline.admission, self.metrics)
        deployer = ModelDeployer(self.registry, self.pipeline, self.metrics, lambda: None, shadows=self.shadows)
        self.poller = RepositoryPoller(root, config.pins, self._load, deployer, shadows=config.shadows)

    def _load(self, bundle, before):
        is_shadow = self.shadows.has(bundle.name, bundle.version)
        return load_shadow(bundle, Placement("cpu")) if is_shadow else load(bundle, Placement("cpu"), before)

    @property
    def now(self) -> tuple[list[int], list[int]]:
        """The versions that clients get, and the shadow."""
        found = self.shadows._models.values()
        return [model.version for model in self.registry.versions("light")], [model.version for model in found]

    async def close(self) -> None:
        """End its threads."""
        await self.pipeline.close()
        await self.poller.close()


def run(scenario, *arguments) -> None:
    """Run a scenario with a repository, which is closed after it."""

    async def whole() -> None:
        repository = Repository(*arguments)
        try:
            await scenario(repository)
        finally:
            await repository.close()

    asyncio.run(whole())


def test_the_newest_other_version_is_what_clients_get(publish_brightness, tmp_path):
    """A shadow that is the newest version is not served; other versions come and go beside it, and it can leave."""
    for _ in range(2):
        publish_brightness(tmp_path)

    async def scenario(repository: Repository) -> None:
        await repository.poller.start()
        assert repository.now == ([1], [2])
        index = {entry.version: (entry.state, entry.reason) for entry in repository.registry.index()}
        assert index == {1: ("READY", ""), 2: ("UNAVAILABLE", "SHADOW")}
        publish_brightness(tmp_path)
        for _ in range(2):
            await repository.poller.poll()
        assert repository.now == ([3], [2])
        for version in (1, 3):
            shutil.rmtree(tmp_path / "light" / str(version))
        await repository.poller.poll()
        assert repository.now == ([], [2])  # a shadow answers nobody, even then
        publish_brightness(tmp_path)
        for _ in range(2):
            await repository.poller.poll()
        assert repository.now == ([3], [2])
        shutil.rmtree(tmp_path / "light" / "2")
        await repository.poller.poll()
        await repository.poller.close()
        assert repository.now == ([3], [])

    run(scenario, tmp_path, "light=2")


def test_a_client_unloads_and_loads_both(publish_brightness, tmp_path):
    """With model control, a shadow leaves and comes with the version that clients get, and its refusal is no error."""
    for _ in range(2):
        publish_brightness(tmp_path)

    async def scenario(repository: Repository) -> None:
        await repository.poller.start()
        await repository.poller.unload("light")
        assert repository.now == ([], [])
        await repository.poller.load("light")
        assert repository.now == ([1], [2])
        (tmp_path / "light" / "2" / "model.onnx").write_bytes(b"damaged")
        await repository.poller.unload("light")
        await repository.poller.load("light")
        assert repository.now == ([1], [])

    run(scenario, tmp_path, "light=2")


def test_a_shadow_that_fails_its_checks_leaves_the_rest(publish_brightness, tmp_path):
    """A shadow whose golden answers differ is refused, and the other version is served."""
    publish_brightness(tmp_path)
    (publish_brightness(tmp_path) / "model.onnx").write_bytes(b"damaged")

    async def scenario(repository: Repository) -> None:
        await repository.poller.start()
        assert repository.now == ([1], [])
        assert repository.metrics.registry.get_sample_value("penult_reloads_total", {"outcome": "refused"}) == 1

    run(scenario, tmp_path, "light=2")


@pytest.mark.parametrize(
    ("versions", "shadow", "message"),
    [
        (2, "dusk=1", "--shadow dusk=1: .* holds no model dusk; there is light"),
        (2, "light=4", "--shadow light=4: light has no version 4; there is 1, 2"),
        (1, "light=1", "--shadow light=1: light has no other version, which clients would get"),
    ],
)
def test_a_shadow_that_cannot_be_stops_the_start(publish_brightness, tmp_path, versions, shadow, message):
    """A missing model, a missing version and the only version are told in one line."""
    for _ in range(versions):
        publish_brightness(tmp_path)

    async def scenario(repository: Repository) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            await repository.poller.start()
        assert "\n" not in str(caught.value)

    run(scenario, tmp_path, shadow)
