"""A few keys are set; every other line and comment stays as it was."""

import tomllib

import pytest

from penult.bench.settings import BenchError
from penult.bench.toml_lines import with_keys, write_keys

BEFORE = """# our server
host = "127.0.0.1"  # loopback
batch_max_images=8 # as in May
'threads' = 4
grace = 2.5
"""


def test_lines_and_comments_stay():
    """Keys that are there change in their line, comments included; new ones come at the end."""
    after = with_keys(BEFORE, {"batch_max_images": 2, "threads": 1, "batch_delay_ms": 0.5, "cpu_mode": "latency"})
    assert after == (
        "# our server\nhost = \"127.0.0.1\"  # loopback\nbatch_max_images=2 # as in May\n'threads' = 1\ngrace = 2.5\n"
        'batch_delay_ms = 0.5\ncpu_mode = "latency"\n'
    )
    assert tomllib.loads(after)["batch_delay_ms"] == 0.5


def test_tables_are_left_alone():
    """A key below a table's header is another key; ours goes above the first header."""
    after = with_keys("a = 1\n[other]\nthreads = 9\n", {"threads": 2})
    assert tomllib.loads(after) == {"a": 1, "threads": 2, "other": {"threads": 9}}


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


@pytest.mark.parametrize("text", ['a = """\nthreads = 3\n"""\n', "threads = [\n 1]\n", "threads ="])
def test_what_cannot_be_edited_safely_is_left_as_it_is(tmp_path, text):
    """A layout that line editing would spoil is refused, with the lines to set by hand; the file is untouched."""
    (tmp_path / "penult.toml").write_text(text)
    with pytest.raises(BenchError, match="--config"):
        write_keys(tmp_path / "penult.toml", {"threads": 2}, "penult bench --tune")
    assert (tmp_path / "penult.toml").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["penult.toml"]
