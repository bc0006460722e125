"""What is served: the newest version that passes every check, and a clear word on those that do not."""

import asyncio
import logging
import shutil

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from penult.bundle.errors import BundleError
from penult.bundle.reader import read_bundle
from penult.service.config import ServeConfig
from penult.service.errors import ConfigError, NotFound, NotReady
from penult.service.inference.pipeline import Pipeline
from penult.service.lifecycle.deployer import ModelDeployer
from penult.service.lifecycle.poller import RepositoryPoller
from penult.service.models import loader as module
from penult.service.models.loader import Placement
from penult.service.models.registry import ModelRegistry
from penult.service.observability.metrics import Metrics
from penult.service.process.wiring import inference_limits
from penult.service.runtime.cuda_options import GpuOptions
from penult.service.runtime.cuda_session import DeviceSession
from penult.service.runtime.session import CPU, CUDA, Session, has_cuda_device


@pytest.fixture
def start(tmp_path):
    """Start a reloader on tmp_path and look again: the repository it fills, and how often it did what."""

    def begin(
        device: str = "cpu", most_images: int = 2, root=tmp_path, looks: int = 0, before_looks=lambda: None
    ) -> ModelRegistry:
        async def whole():
            metrics, repository = Metrics(CollectorRegistry()), ModelRegistry()
            pipeline = Pipeline(inference_limits(ServeConfig()), metrics)

            def load_model(bundle, before):
                model = module.load(bundle, Placement(device), before)
                module.warm(model, most_images)
                return model

            reloader = RepositoryPoller(
                root, {}, load_model, ModelDeployer(repository, pipeline, metrics, lambda: None)
            )
            try:
                await reloader.start()
                before_looks()
                for _ in range(looks):
                    await reloader.poll()
            finally:
                begin.refused, begin.loaded, begin.retired = (
                    int(metrics.registry.get_sample_value("penult_reloads_total", {"outcome": outcome}))
                    for outcome in ("refused", "loaded", "retired")
                )
                await pipeline.close()
                await reloader.close()
            return repository

        return asyncio.run(whole())

    return begin


@pytest.fixture
def loaded(start):
    """Load all of tmp_path: {name: version}, and the repository; loaded.refused counts candidates."""

    def load(most_images: int = 2) -> tuple[dict[str, int], ModelRegistry]:
        repository = start(most_images=most_images)
        load.refused = start.refused
        return {model.name: model.version for model in repository.all()}, repository

    return load


def test_the_newest_version_is_served(publish_brightness, tmp_path, loaded):
    """Of versions 1 to 11, 11 is served: numbers are compared, not texts."""
    publish_brightness(tmp_path)
    for version in (2, 9, 10, 11):
        shutil.copytree(tmp_path / "light" / "1", tmp_path / "light" / str(version))
    served, repository = loaded()
    assert served == {"light": 11}
    assert repository.get("light", 0).version == 11
    assert loaded.refused == 0


def link(path, target):
    """Make a link, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


# Of real/light, which holds version 1: what lies in the repository, and what is served then.
LINKED = {
    "a model": ({"pets": "real/light"}, {("pets", 1)}),
    "a chain": ({"pets": "real/other", "real/other": "real/light"}, {("pets", 1)}),
    "two to one": ({"pets": "real/light", "dogs": "real/light"}, {("dogs", 1), ("pets", 1)}),
    "a target that is no name": ({"pets": "real/my light.v2"}, {("pets", 1)}),
    "a version": ({"pets/7": "real/light/1"}, {("pets", 7)}),
    "two versions to one": ({"pets/7": "real/light/1", "pets/9": "real/light/1"}, {("pets", 9)}),
    "nowhere": ({"pets": "real/light", "lost": "real/lost", "pets2/1": "real/lost"}, {("pets", 1)}),
    "a loop": ({"pets": "real/light", "ring": "models/ring", "pets2/1": "models/pets2/1"}, {("pets", 1)}),
}


@pytest.mark.parametrize("how", LINKED)
def test_a_linked_folder_is_served_under_its_own_name_and_loaded_once(publish_brightness, tmp_path, start, how, caplog):
    """A link's own name is served, whatever it leads to; looking again, and again, loads nothing anew."""
    links, served = LINKED[how]
    real = publish_brightness(tmp_path / "real").parent
    (real.parent / "my light.v2").symlink_to(real)
    for path, target in links.items():
        link(tmp_path / (path if path.startswith("real") else f"models/{path}"), tmp_path / target)
    repository = start(root=tmp_path / "models", looks=3)
    assert {(model.name, model.version) for model in repository.all()} == served
    assert (start.loaded, start.refused, start.retired) == (len(served), 0, 0)
    assert {entry.state for entry in repository.index()} == {"READY"}
    assert [line for line in caplog.messages if "link to nowhere" in line] == [
        f"{name} is a link to nowhere, so it is not served; mend or remove it"
        for name in ("lost", "ring")
        if name in links
    ]


def test_a_link_that_is_set_anew_brings_the_other_target(publish_brightness, tmp_path, start):
    """A link is switched, as deployments do: what it leads to now is served, under the same name."""
    for name, classes in (("blue", ("dark", "bright")), ("green", ("night", "day"))):
        publish_brightness(tmp_path / "real", name, classes=classes)
    link(tmp_path / "models" / "pets", tmp_path / "real" / "blue")

    def switch():
        link(tmp_path / "new", tmp_path / "real" / "green")
        (tmp_path / "new").replace(tmp_path / "models" / "pets")

    repository = start(root=tmp_path / "models", looks=3, before_looks=switch)
    assert [model.manifest.classes for model in repository.all()] == [("night", "day")]
    assert (start.loaded, start.retired) == (2, 1)


def flip_a_byte(folder):
    """Damage the network."""
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def cut_the_manifest(folder):
    """Damage the manifest."""
    (folder / "manifest.json").write_text("{")


def lose_the_goldens(folder):
    """Remove a file."""
    (folder / "golden.npz").unlink()


def add_a_file(folder):
    """Add a file that nobody lists."""
    (folder / "extra.py").write_text("")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip_a_byte, "FILE_DIGEST"), (cut_the_manifest, "MANIFEST_INVALID"), (lose_the_goldens, "FILE_MISSING"),
     (add_a_file, "FILE_UNLISTED")],
)  # fmt: skip
def test_a_damaged_newest_version_leaves_the_older_serving(
    publish_brightness, tmp_path, loaded, caplog, damage, reason
):
    """A damaged version is refused with one clear line, counted, and the version before it is served."""
    publish_brightness(tmp_path)
    damage(publish_brightness(tmp_path))
    with caplog.at_level(logging.INFO, "penult.service.lifecycle.poller"):
        served, _ = loaded()
    assert served == {"light": 1}
    assert loaded.refused == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith("refused light version 2: ")
    assert line.endswith(f"({reason})")
    assert "\n" not in line
    assert any("loaded light version 1" in record.getMessage() for record in caplog.records)


BAD_GOLDENS = {
    "logits": ({"logits": np.array([[5.1, -5], [-4, 4]], dtype=np.float32)}, "GOLDEN_VALUES"),
    "descriptor": ({"descriptor": np.zeros((2, 3), dtype=np.float32)}, "GOLDEN_VALUES"),
    "crops": ({"crops": np.zeros((2, 8, 8, 3), dtype=np.uint8)}, "GOLDEN_PIXELS"),
    "sizes": ({"crops": np.zeros((2, 9, 9, 3), dtype=np.uint8)}, "GOLDEN_PIXELS"),
    "no-photo": ({"images": ()}, "GOLDEN_EMPTY"),
    "broken-photo": ({"images": (b"\x89PNG\r\n\x1a\n", b"text")}, None),
}


@pytest.mark.parametrize("case", BAD_GOLDENS)
def test_golden_photos_with_other_answers_are_refused(publish_brightness, tmp_path, loaded, caplog, case):
    """A model whose golden photos give other pixels, numbers or none at all is refused; the older one is served."""
    goldens, reason = BAD_GOLDENS[case]
    publish_brightness(tmp_path)
    publish_brightness(tmp_path, goldens=goldens)
    served, _ = loaded()
    assert served == {"light": 1}
    assert loaded.refused == 1
    assert reason is None or f"({reason})" in caplog.text


BAD_FILES = {
    "model": {"model.onnx": b"no model"},
    "svm": {"svm.pkl": b"no pickle"},
    "goldens": {"golden.npz": b"no archive"},
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_cannot_be_parsed_are_refused(publish_brightness, tmp_path, loaded, case):
    """Files with the right digest and wrong contents are refused; the older version is served."""
    publish_brightness(tmp_path)
    publish_brightness(tmp_path, files=BAD_FILES[case])
    served, _ = loaded()
    assert (served, loaded.refused) == ({"light": 1}, 1)


@pytest.mark.parametrize(("batch_limit", "expected"), [(2, ({"light": 2}, 0)), (4, ({"light": 1}, 1))])
def test_a_model_that_cannot_run_its_batches_is_refused(publish_brightness, tmp_path, loaded, batch_limit, expected):
    """A network that fails on batches as large as it will meet, and only such a one, is refused before it serves."""
    publish_brightness(tmp_path)
    publish_brightness(tmp_path, most_images=3)
    served, _ = loaded(batch_limit)
    assert (served, loaded.refused) == expected


def test_one_bad_model_does_not_hold_up_the_others(publish_brightness, tmp_path, loaded):
    """Models stand by themselves: one without any good version is left out, the rest are served, by name."""
    for name in ("b", "a", "c"):
        publish_brightness(tmp_path, name)
    flip_a_byte(tmp_path / "b" / "1")
    served, repository = loaded()
    assert list(served) == ["a", "c"]
    assert [model.name for model in repository.all()] == ["a", "c"]


def test_nothing_usable_is_an_error(publish_brightness, tmp_path, loaded):
    """A repository of damaged models only cannot be served, and says where to look."""
    flip_a_byte(publish_brightness(tmp_path))
    with pytest.raises(BundleError, match=r"no model in .* can be served; the lines above say why"):
        loaded()


@pytest.mark.parametrize("given", ["light", "light/1"])
def test_a_model_for_a_repository_leads_to_the_repository(publish_brightness, tmp_path, start, given):
    """--models models/light, or one of its versions, asks whether the folder around it was meant."""
    publish_brightness(tmp_path)
    with pytest.raises(BundleError, match=f"did you mean --models {tmp_path}\\?$") as caught:
        start(root=tmp_path / given)
    assert caught.value.reason == "MODELS_EMPTY"


def test_a_model_whose_folder_is_no_name_is_said_so_once(publish_brightness, tmp_path, start, caplog):
    """A folder of versions that cannot be asked for is not passed over in silence, and hidden ones are."""
    folder = publish_brightness(tmp_path).parent
    for name in ("my light.v2", "..2026_11_30", ".writing-x"):
        shutil.copytree(folder, tmp_path / name)
    start(looks=3)
    assert [line for line in caplog.messages if "model name" in line] == [
        "'my light.v2' is not served: a model name is 1 to 64 letters, digits, '_' and '-'; rename the folder"
    ]


@pytest.mark.parametrize("folders", [[], ["notes"], ["light/.writing-x"], ["light/01"]])
def test_an_empty_repository_says_what_to_do(tmp_path, loaded, folders):
    """Without a single version, unfinished ones left out, the error names the commands that make one."""
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(BundleError, match="make demo, or penult train PHOTOS --out") as caught:
        loaded()
    assert caught.value.reason == "MODELS_EMPTY"


def test_a_missing_repository_says_what_to_do(tmp_path, start):
    """A folder that is not there is named, with the flag that chooses another."""
    with pytest.raises(BundleError, match=r"absent is not a folder; .*--models"):
        start(root=tmp_path / "absent")


@pytest.mark.skipif(has_cuda_device(), reason="shows what happens without a CUDA device; this has one")
def test_a_device_that_is_not_there_is_no_models_fault(publish_brightness, tmp_path, start):
    """--device cuda without CUDA stops the start; it does not refuse one bundle after the other."""
    publish_brightness(tmp_path)
    with pytest.raises(ConfigError):
        start("cuda")
    assert start.refused == 0


@pytest.fixture
def pretended_cuda(monkeypatch):
    """Let the CPU pass for a CUDA device: pretended_cuda.options lists what each fast session was built with."""

    class PlainOnCuda(Session):
        def __init__(self, onnx, manifest, device, plan, memory_mb):
            super().__init__(onnx, manifest, "cpu", plan)
            self.provider, self.memory_mb = CUDA, memory_mb

    def fast(onnx, manifest, most_images, options):
        fast.options.append((most_images, options))
        session = DeviceSession(onnx, manifest, most_images)
        session.provider = CUDA
        return session

    fast.options = []
    monkeypatch.setattr(module, "Session", PlainOnCuda)
    monkeypatch.setattr(module, "DeviceSession", fast)
    return fast


def test_a_device_gets_the_fast_way(publish_brightness, tmp_path, pretended_cuda):
    """On CUDA both layouts are built with the limits that were set, compared on the goldens, and one of them serves."""
    publish_brightness(tmp_path)
    gpu = GpuOptions(4, 256)
    model = module.load(read_bundle(tmp_path / "light"), Placement("cuda", cores=2, gpu=gpu))
    assert isinstance(model.session, DeviceSession)
    assert [most for most, _ in pretended_cuda.options] == [4, 4]
    assert [options["prefer_nhwc"] for _, options in pretended_cuda.options] == ["0", "1"]
    assert {options["gpu_mem_limit"] for _, options in pretended_cuda.options} == {str(256 << 20)}
    module.warm(model, 4)
    model.session.close()


def test_a_device_without_the_fast_way_serves_plainly(
    publish_brightness, tmp_path, pretended_cuda, monkeypatch, caplog
):
    """Where the fast way fails, the model is served on the same device, plainly, and the log is loud about it."""
    monkeypatch.setattr(module, "DeviceSession", lambda *_: 1 / 0)
    publish_brightness(tmp_path)
    model = module.load(read_bundle(tmp_path / "light"), Placement("cuda", gpu=GpuOptions(4, 256)))
    assert (model.session.provider, model.session.driver, model.session.memory_mb) == (CUDA, None, 256)
    assert "light RUNS SLOWLY" in caplog.text


def test_models_are_found_by_name_and_version(publish_brightness, tmp_path, loaded):
    """A name finds its model, with version 0 or its own; "" finds the only one, and is refused among several."""
    publish_brightness(tmp_path, "a")
    _, repository = loaded()
    assert repository.get("", 0) is repository.get("a", 0) is repository.get("a", 1)
    publish_brightness(tmp_path, "b")
    _, repository = loaded()
    assert repository.get("b", 0).name == "b"
    for name, version, reason in (
        ("", 0, "MODEL_UNNAMED"), ("c", 0, "MODEL_UNKNOWN"), ("a", 2, "VERSION_UNKNOWN"), ("A", 0, "MODEL_UNKNOWN"),
    ):  # fmt: skip
        with pytest.raises(NotFound) as caught:
            repository.get(name, version)
        assert caught.value.reason == reason


def test_before_loading_nothing_is_ready():
    """Until the first models are there, asking for any model is NotReady with a hint, not NotFound."""
    with pytest.raises(NotReady) as caught:
        ModelRegistry().get("light", 0)
    assert caught.value.retry_after_ms


def test_a_loaded_model_tells_what_it_is(publish_brightness, tmp_path, loaded):
    """What is served knows its provider, its scorers, its fingerprint and how near its goldens came."""
    publish_brightness(tmp_path)
    model = loaded()[1].get("light", 0)
    assert (model.session.provider, model.scorers, model.svm) == (CPU, ("dense",), None)
    assert model.fingerprint == model.manifest.fingerprint
    assert 0 <= model.golden_difference < 1e-4
