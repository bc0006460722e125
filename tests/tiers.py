"""The tier of every test (unit, server or system), from its folder and its fixtures; a guard holds tests to theirs.

unit:   no server, no training.
server: starts servers or trains; needs python3 and make only.
system: needs other programs, environments of their own, real weights or minutes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

TIERS = ("unit", "server", "system")
_ROOT = Path(__file__).parent
_SYSTEM_FOLDERS = ("attacks", "deploy", "e2e", "fuzz", "image", "scale")
_SYSTEM_FIXTURES = {"environment", "packages", "shared_data"}
_SERVER_FIXTURES = {"few_digits", "launch", "one_class", "server", "start_server", "trained"}
_running = ["system"]  # the tier of the test that runs now


def tier_of(folders: tuple[str, ...], fixtures: set[str], marks: set[str]) -> str:
    """Return the highest tier that folders, fixtures (with those they use) or a mark ask for."""
    if "system" in marks or set(_SYSTEM_FOLDERS) & set(folders[:1]) or _SYSTEM_FIXTURES & fixtures:
        return "system"
    return "server" if "server" in marks or _SERVER_FIXTURES & fixtures else "unit"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave folders of system tests unread if no system test is wanted: their corpora take seconds to make."""
    is_system = collection_path.parent == _ROOT and collection_path.name in _SYSTEM_FOLDERS
    return True if is_system and config.option.markexpr in ("unit", "server", "not system") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier, before pytest deselects by marks, and order the files."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()} & set(TIERS)
        tier = tier_of(item.path.relative_to(_ROOT).parts, _fixtures(item), marks)
        item.own_markers = [mark for mark in item.own_markers if mark.name not in TIERS]
        item.add_marker(tier)
        item.stash[_TIER] = tier
    ranks = ranks_of([(str(item.path), item.stash[_TIER], "trained" in _fixtures(item)) for item in items])
    items.sort(key=lambda item: ranks[str(item.path)])


def ranks_of(tests: Sequence[tuple[str, str, bool]]) -> dict[str, int]:
    """Return the rank of each file, for two processes that each take the next file when they are free.

    One file that needs the trained model comes first, and then those that train or serve others, so that the second
    process does not wait for the model. Unit tests come last: they are short, so both processes end together.

    Args:
        tests: File, tier, and whether it needs the trained model, of each test in the order of collection.
    """
    busy = {file for file, tier, _ in tests if tier == "server"}
    needing = {file for file, _, needs in tests if needs}
    lead = next((file for file, tier, needs in tests if tier == "server" and needs), None)
    return {file: 3 if file not in busy else 0 if file == lead else 1 + (file in needing) for file, _, _ in tests}


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


_TIER = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let the guard know which tier the programs belong to that are started now, and keep unit tests from training."""
    _running[0] = item.stash[_TIER]
    trainer = sys.modules.get("penult.export.training.trainer")
    with pytest.MonkeyPatch.context() as patch:
        if trainer and _running[0] == "unit":
            patch.setattr(trainer.Trainer, "epoch", _no_training)
        try:
            return (yield)
        finally:
            _running[0] = "system"


def _no_training(*_: object) -> None:
    raise AssertionError("this test is in the tier `unit` and trains: mark it pytest.mark.server")


def refusal(tier: str, words: list[str]) -> str:
    """Return why a test of the tier may not start a program, or nothing."""
    program = Path(words[0]).name
    known = program.startswith("python") or Path(words[0]).parent == Path(sys.executable).parent
    if tier != "system" and not known:
        return f"starts {program}, which a plain Debian may lack: mark it pytest.mark.system"
    if tier == "unit" and {"serve", "train"} & set(words[1:5]):
        return "starts a server or a training: mark it pytest.mark.server"
    return ""


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "subprocess.Popen" or _running[0] == "system" or not _is_ours(sys._getframe(1)):
        return
    words = arguments[1]
    listed = [words] if isinstance(words, str | os.PathLike) else words
    why = refusal(_running[0], [os.fsdecode(word) for word in listed])
    if why:
        raise AssertionError(f"this test is in the tier `{_running[0]}` and {why}")


def _is_ours(frame: FrameType | None) -> bool:
    """Return whether a test calls subprocess itself; libraries that do have a way round what is missing."""
    while frame and frame.f_code.co_filename == subprocess.__file__:
        frame = frame.f_back
    return bool(frame) and Path(frame.f_code.co_filename).is_relative_to(_ROOT)


sys.addaudithook(_guard)
