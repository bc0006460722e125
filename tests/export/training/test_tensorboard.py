"""--tensorboard: event files that TensorBoard's own reader understands."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from penult.export.training.history import Epoch
from penult.export.training.tensorboard import TensorBoardWriter


def _events(folder: Path) -> list[Event]:
    """Read the records of a folder's one event file: length, checksum, message, checksum."""
    (path,) = folder.iterdir()
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        events.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    return events


def test_every_epoch_is_in_the_event_file(tmp_path: Path):
    """Losses, accuracies and the rate of every epoch are scalars, by phase, at the epoch's number."""
    with TensorBoardWriter(tmp_path / "runs") as board:
        for number in (1, 2):
            board.add(Epoch("all", number, 1e-3, 0.9, 0.8, 0.7 / number, 0.6, 0.5, 4.0, 0.1))
    found = {
        (value.tag, event.step): value.simple_value
        for event in _events(tmp_path / "runs")
        for value in event.summary.value
    }
    assert abs(found["all/loss/validation", 2] - 0.35) < 1e-6
    assert abs(found["all/rate/head", 1] - 1e-3) < 1e-9
    assert {tag for tag, _ in found} == {
        "all/loss/training", "all/loss/validation", "all/loss/running", "all/accuracy/training",
        "all/accuracy/validation", "all/rate/head", "all/seconds/epoch",
    }  # fmt: skip


def test_without_a_folder_nothing_is_written(tmp_path: Path):
    """The board is silent unless asked for."""
    with TensorBoardWriter(None) as board:
        board.add(Epoch("all", 1, 1e-3, 0.9, 0.8, 0.7, 0.6, 0.5, 4.0))
    assert list(tmp_path.iterdir()) == []
