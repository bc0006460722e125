"""The fast way is taken only where it gives the plain answers; the choice is measured, and a failure is loud."""

import logging
import threading

import numpy as np
import pytest

from penult.service.runtime import cuda_layout
from penult.service.runtime.cuda_layout import Speed, check, choose, measure
from penult.service.runtime.cuda_options import GpuOptions
from penult.service.runtime.cuda_session import DeviceSession
from penult.service.runtime.session import Session

LIMIT = 6


@pytest.fixture(scope="module")
def plain(seeded):
    """The small network, run plainly."""
    return Session(seeded.onnx, seeded.manifest, "cpu")


@pytest.fixture
def build(seeded):
    """Build sessions on the CPU, whatever the layout; build.made lists them by layout."""

    def make(layout: str) -> DeviceSession:
        session = DeviceSession(seeded.onnx, seeded.manifest, LIMIT)
        make.made[layout] = session
        return session

    make.made = {}
    yield make
    for session in make.made.values():
        session.close()


@pytest.fixture
def options():
    """GpuOptions of a mode."""
    return lambda mode="auto": GpuOptions(LIMIT, 0, mode)


def test_the_faster_layout_is_taken(plain, build, seeded, options, monkeypatch, caplog):
    """Both layouts are measured and logged, the one with more images per second serves, and the other's thread ends."""
    caplog.set_level(logging.DEBUG)
    rates = iter([Speed(100.0, 0.01), Speed(250.0, 0.02)])
    monkeypatch.setattr(cuda_layout, "measure", lambda *_: next(rates))
    session = choose("pets", plain, build, seeded.images, options())
    assert session is build.made["nhwc"]
    threads = {thread.ident for thread in threading.enumerate()}
    assert build.made["nchw"]._thread not in threads
    assert build.made["nhwc"]._thread in threads
    lines = [message for message in caplog.messages if "images/s" in message]
    assert ["(chosen)" in line for line in lines] == [False, True]
    assert lines[1].startswith("pets: nhwc: 250 images/s in batches of 6, 20.00 ms a call of one")


@pytest.mark.parametrize(
    ("mode", "built"), [("nchw", ["nchw"]), ("nhwc", ["nhwc"]), ("plain", []), ("auto", ["nchw", "nhwc"])]
)
def test_only_the_layouts_of_the_mode_are_built(plain, build, seeded, options, mode, built, caplog):
    """A named layout is not compared with the other; plain builds nothing, and is no reason for a warning."""
    session = choose("pets", plain, build, seeded.images, options(mode))
    assert list(build.made) == built
    assert (session is plain) == (mode == "plain")
    assert caplog.messages == []


def broken_build(layout):
    raise RuntimeError("not all nodes are on the CUDA provider\nand more")


def test_what_cannot_be_built_is_run_plainly(plain, seeded, options, caplog):
    """Where the fast way cannot be built, the plain session serves, on its device, with one loud line and the reason."""
    session = choose("pets", plain, broken_build, seeded.images, options())
    assert session is plain
    assert sum("pets RUNS SLOWLY" in message for message in caplog.messages) == 1
    assert "nchw cannot be used: not all nodes are on the CUDA provider" in caplog.text
    assert "and more" not in caplog.text


def test_one_working_layout_is_enough(plain, build, seeded, options, caplog):
    """A layout that fails is left out with a warning, and the other serves."""
    session = choose(
        "pets", plain, lambda layout: broken_build(layout) if layout == "nchw" else build(layout),
        seeded.images, options(),
    )  # fmt: skip
    assert session is build.made["nhwc"]
    assert "RUNS SLOWLY" not in caplog.text


@pytest.mark.parametrize("fault", ["other", "stale", "nan", "warm"])
def test_wrong_answers_are_found_out(plain, build, seeded, options, monkeypatch, caplog, fault):
    """Outputs off by more than the tolerance, those of an earlier batch, NaN, or a failing warm-up: run plainly."""
    right, kept = DeviceSession.run_images, {}

    def wrong(session, images):
        logits, descriptor = right(session, images)
        if fault == "stale":  # a graph that reads the addresses of its first batch for ever
            return kept.setdefault((id(session), len(images)), (logits, descriptor))
        return (logits * (np.nan if fault == "nan" else 1.05)), descriptor

    if fault == "warm":
        monkeypatch.setattr(DeviceSession, "warm", lambda _: broken_build(""))
    else:
        monkeypatch.setattr(DeviceSession, "run_images", wrong)
    before = threading.active_count()
    session = choose("pets", plain, build, seeded.images, options())
    assert session is plain
    assert "pets RUNS SLOWLY" in caplog.text
    assert threading.active_count() == before


def test_equal_sessions_compare_equal(plain, build, seeded):
    """The comparison of a right session is far below the tolerance."""
    assert check(build("nchw"), plain, seeded.images, LIMIT) < 1e-5


def test_measuring_gives_rates(build, seeded):
    """A full batch and a single image are timed."""
    speed = measure(build("nchw"), LIMIT, seeded.images)
    assert speed.images_per_s > 0
    assert 0 < speed.run_s < 1
