"""A few keys are set; every other line and comment stays as it was."""

import tomllib
from pathlib import Path

import pytest

from penult.bench.config_file import write_keys
from penult.bench.settings import BenchError

BEFORE = """# our server
host = "127.0.0.1"  # loopback
batch_max_images=8 # as in May
'threads' = 4
grace = 2.5
"""


def written(path: Path, text: str, values: dict[str, int | float | str]) -> str:
    """The text of a file after its keys were set."""
    path.write_text(text)
    assert write_keys(path, values, "unused")
    return path.read_text()


def test_lines_and_comments_stay(tmp_path):
    """Keys that exist change in their line, and comments stay; new keys come at the end."""
    values = {"batch_max_images": 2, "threads": 1, "batch_delay_ms": 0.5, "cpu_mode": "latency"}
    assert written(tmp_path / "penult.toml", BEFORE, values) == (
        "# our server\nhost = \"127.0.0.1\"  # loopback\nbatch_max_images=2 # as in May\n'threads' = 1\ngrace = 2.5\n"
        'batch_delay_ms = 0.5\ncpu_mode = "latency"\n'
    )


@pytest.mark.parametrize("text", ["a = 1\n[other]\nthreads = 9\n", "threads = [\n 1]\n", 'a = """\nthreads = 3\n"""\n'])
def test_only_the_key_itself_is_set(tmp_path, text):
    """A key of a table is another key, and so is a line within a text; a value of several lines is replaced."""
    assert tomllib.loads(written(tmp_path / "penult.toml", text, {"threads": 2})) == tomllib.loads(text) | {
        "threads": 2
    }


@pytest.mark.parametrize("values", [{}, {"threads": 2}], ids=str)
def test_a_new_file_says_where_it_is_from(tmp_path, values):
    """Where there is no file one is made, with a line about it: without keys it says that none was better."""
    assert write_keys(tmp_path / "penult.toml", values, "penult bench --tune")
    text = (tmp_path / "penult.toml").read_text()
    assert text.splitlines()[0] == "# penult bench --tune"
    assert tomllib.loads(text) == values


def test_without_keys_a_file_stays_as_it_is(tmp_path):
    """Nothing found, nothing written."""
    (tmp_path / "penult.toml").write_text(BEFORE)
    assert not write_keys(tmp_path / "penult.toml", {}, "penult bench --tune")
    assert (tmp_path / "penult.toml").read_text() == BEFORE


def test_what_is_not_toml_is_left_as_it_is(tmp_path):
    """A file that is not TOML is an error with the lines to set by hand; the file is unchanged."""
    (tmp_path / "penult.toml").write_text("threads =")
    with pytest.raises(BenchError, match=r'--config .*; set this by hand: threads = 2; cpu_mode = "latency"'):
        write_keys(tmp_path / "penult.toml", {"threads": 2, "cpu_mode": "latency"}, "penult bench --tune")
    assert (tmp_path / "penult.toml").read_text() == "threads ="
    assert [path.name for path in tmp_path.iterdir()] == ["penult.toml"]
