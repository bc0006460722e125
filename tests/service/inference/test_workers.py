"""Workers run what they are given on a fixed number of threads, and know how long an image takes them."""

import threading

import pytest

from penult.service.inference import workers as workers_module
from penult.service.inference.workers import Workers, WorkTime


@pytest.fixture
def workers():
    """Two workers that end with the test."""
    two = Workers(2)
    yield two
    two.shutdown()


def test_everything_runs_on_so_many_threads(workers):
    """A hundred tasks run on two threads; shutdown() waits for them all."""
    threads, both = [], threading.Barrier(2, timeout=60)
    workers.submit(both.wait)
    workers.submit(both.wait)  # both threads run at a time, else the barrier breaks
    for _ in range(100):
        workers.submit(lambda: threads.append(threading.current_thread()))
    workers.shutdown()
    assert len(threads) == 100
    assert not both.broken
    assert len(set(threads)) <= 2


def test_a_bug_in_a_task_ends_no_thread(workers, caplog):
    """An exception is logged, and the threads go on."""
    for _ in range(5):
        workers.submit(lambda: 1 / 0)
    done = threading.Event()
    workers.submit(done.set)
    assert done.wait(60)
    workers.shutdown()
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 5


@pytest.fixture
def worked(monkeypatch):
    """Let a worker work so many seconds of a clock that only moves there, and wait for it: worked(3.0)."""
    now_s, one = [0.0], Workers(1)
    monkeypatch.setattr(workers_module.time, "perf_counter", lambda: now_s[0])

    def work(seconds: float) -> None:
        now_s[0] += seconds

    def start(seconds: float) -> None:
        one.submit(lambda: work(seconds))
        done = threading.Event()
        one.submit(done.set)
        assert done.wait(60)

    start.workers = one
    yield start
    one.shutdown()


def test_the_wait_is_what_an_image_took(worked):
    """The first measurement counts at once, later ones half, after 16 images; other work does not count."""
    time_ = WorkTime(worked.workers)
    assert time_.wait_s(10) == 0
    worked(0.2)
    time_.count(2)
    assert time_.wait_s(10) == pytest.approx(1.0)
    worked(4.8)
    time_.count(15)
    assert time_.wait_s(1) == pytest.approx(0.1)
    worked(100.0)
    time_.leave_out(100.0)
    time_.count(1)
    assert time_.wait_s(1) == pytest.approx((0.1 + 0.3) / 2)
