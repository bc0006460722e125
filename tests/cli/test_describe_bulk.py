"""`penult describe --out`: any number of photos into one Parquet file, whatever breaks in between.

A pipe among the photos is where a run waits until the test says: what happens "in mid-run" happens there, every time.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penult import cli
from penult.client import Client
from penult.client.tools.parquet import Described, Row
from penult.client.tools.parquet_parts import Parts, PartsError

MANY = 10_000


@pytest.fixture(scope="module")
def running(quick, start_server, tmp_path_factory):
    """A server of `light`, with a folder for collections."""
    return start_server(quick, "--lookup", str(tmp_path_factory.mktemp("lookup")))


@pytest.fixture(scope="module")
def colour(encode):
    """Make a photo whose descriptor is its own: colour(n) for n below 10,000."""

    def make(n: int) -> bytes:
        return encode(np.full((8, 8, 3), (n % 25 * 10, n // 25 % 20 * 12, n // 500 * 12), dtype=np.uint8))

    return make


@pytest.fixture
def album(tmp_path, colour):
    """Make a folder of photos in three classes: album(count) returns it."""

    def make(count: int) -> Path:
        for n in range(count):
            path = tmp_path / "album" / f"c{n * 3 // count}" / f"{n:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(colour(n))
        return tmp_path / "album"

    return make


@pytest.fixture
def penult(capsys, running):
    """Run a verb: penult("describe", …) gives exit code, output and errors; `target` for another server."""

    def run(*argv: object, target: str = "") -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([*map(str, argv), "--target", target or running.target])
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def begin():
    """Start a run in a process of its own: begin(target, …); it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(target: str, *argv: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "penult.cli", "describe", *map(str, argv), "--target", target]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_for():
    """Wait until something is so: wait_for(lambda: …)."""

    def wait(is_so) -> None:
        until = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < until, "that never came"
            time.sleep(0.01)

    return wait


@pytest.fixture
def reached(wait_for):
    """Wait until a run reads from the pipe at a path, and hold it there: reached(path) returns the pipe to feed."""

    def wait(path: Path) -> int:
        opened: list[int] = []

        def is_read() -> bool:
            try:
                opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError as error:
                assert error.errno == errno.ENXIO  # nobody reads yet
            return bool(opened)

        wait_for(is_read)
        return opened[0]

    return wait


def pipe_in(path: Path) -> bytes:
    """Put a pipe in a photo's place; return the photo."""
    photo = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    return photo


def listed(folder: Path) -> list[object]:
    """Name a folder's photos one by one, with the ids that the folder gives them: pipes among them are read, too."""
    path = folder.with_name("list.txt")
    path.write_text("".join(f"{each.relative_to(folder)}\n" for each in sorted(folder.rglob("*.png"))))
    return [folder, "--list", path]


def feed(path: Path, pipe: int, photo: bytes) -> None:
    """Let the run that waits at the pipe have its photo, and whoever reads the file again."""
    path.unlink()
    path.write_bytes(photo)
    os.write(pipe, photo)
    os.close(pipe)


def parts_of(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def rows_of(out: Path) -> list[dict]:
    return pq.read_table(out).to_pylist()


def test_killed_and_resumed_gives_every_photo_once(album, begin, running, penult, tmp_path, wait_for):
    """Of 10,000 photos, with SIGKILL in the midst and the same command again, each has one row, as described alone."""
    folder, out = album(MANY), tmp_path / "v.parquet"
    paths = sorted(folder.rglob("*.png"))
    photo = pipe_in(paths[5000])
    process = begin(running.target, *listed(folder), "--out", out)
    wait_for(lambda: len(list(parts_of(out).glob("*.parquet"))) == 4)
    process.kill()
    process.wait(120)
    assert not out.exists()
    (parts_of(out) / "00000004.tmp").write_bytes(b"PAR1 half a part")
    before = {path.name: path.stat().st_mtime_ns for path in parts_of(out).glob("*.parquet")}
    paths[5000].unlink()
    paths[5000].write_bytes(photo)
    assert len(before) == 4
    code, told, err = penult("describe", folder, "--out", out)
    assert (code, err) == (0, "")
    assert told.startswith(f"{MANY} photos are in {out}, described by light version 1 (")
    assert not parts_of(out).exists()
    table = pq.read_table(out)
    assert table.column("id").to_pylist() == [path.relative_to(folder).as_posix() for path in paths]
    assert table.column("error").null_count == MANY
    with Client(running.target) as client:
        for n in range(0, MANY, MANY // 50):
            (alone,) = client.describe([paths[n]]).results
            np.testing.assert_array_equal(np.float32(table.column("descriptor")[n].as_py()), alone)


def test_columns_and_metadata_are_as_promised(album, running, penult, tmp_path):
    """Ids are paths within the folder, labels its class folders; types and metadata say what the descriptors are."""
    out = tmp_path / "v.parquet"
    folder = album(9)
    shutil.copy(folder / "c0" / "00000.png", folder / "top.png")
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "top.png", folder / ".hidden" / "x.png")
    code, told, _ = penult("describe", folder, "--out", out, "--json")
    with Client(running.target) as client:
        model = client.get_model()
    fingerprint = model.version.fingerprint
    assert code == 0
    assert json.loads(told) == {"out": str(out), "photos": 10, "failed": 0, "model": "light", "version": 1,
                                "fingerprint": fingerprint}  # fmt: skip
    schema = pq.read_schema(out)
    assert dict(zip(schema.names, schema.types, strict=True)) == {
        "id": pa.string(), "label": pa.string(), "descriptor": pa.list_(pa.float32(), 3), "model": pa.string(),
        "version": pa.int64(), "fingerprint": pa.string(), "error": pa.string(),
    }  # fmt: skip
    assert {k: v for k, v in schema.metadata.items() if k.startswith(b"penult.")} == {
        b"penult.model": b"light", b"penult.version": b"1", b"penult.descriptor_length": b"3",
        b"penult.fingerprint": fingerprint.encode(),
    }  # fmt: skip
    rows = rows_of(out)
    assert [(r["id"], r["label"]) for r in rows[::3]] == [
        ("c0/00000.png", "c0"), ("c1/00003.png", "c1"), ("c2/00006.png", "c2"), ("top.png", None),
    ]  # fmt: skip
    assert {(r["model"], r["version"], r["fingerprint"], r["error"]) for r in rows} == {("light", 1, fingerprint, None)}


def test_pandas_reads_it(album, penult, tmp_path):
    """Where pandas is installed, its read_parquet gives the same rows."""
    pandas = pytest.importorskip("pandas")
    penult("describe", album(9), "--out", tmp_path / "v.parquet")
    frame = pandas.read_parquet(tmp_path / "v.parquet")
    assert np.stack(frame["descriptor"]).shape == (9, 3)
    assert list(frame["label"]) == ["c0"] * 3 + ["c1"] * 3 + ["c2"] * 3


def test_a_list_names_photos(album, penult, tmp_path, monkeypatch):
    """--list takes a path per line, from the folder or from here; ids are the lines, also those of no file."""
    folder = album(6)
    lines = ["c2/00005.png", "c0/00001.png", "absent.png", str(folder / "c1" / "00002.png")]
    (tmp_path / "list.txt").write_text("\r\n".join(lines) + "\n\n")
    code, told, _ = penult("describe", folder, "--list", tmp_path / "list.txt", "--out", tmp_path / "v.parquet")
    rows = rows_of(tmp_path / "v.parquet")
    assert (code, told.splitlines()[1]) == (1, "1 of them could not be described; the column error has the reasons")
    assert [(row["id"], row["label"]) for row in rows] == list(zip(lines, ["c2", "c0", None, "c1"], strict=True))
    assert [row["error"] is None for row in rows] == [True, True, False, True]
    monkeypatch.chdir(folder)
    penult("describe", "--list", tmp_path / "list.txt", "--out", tmp_path / "here.parquet")
    here = rows_of(tmp_path / "here.parquet")
    assert [r["descriptor"] for r in here] == [r["descriptor"] for r in rows]


def test_a_column_holds_photos(album, penult, tmp_path):
    """--from takes bytes or paths of a column; ids are a column's, the paths, or numbers; a row without photo has an error."""
    folder = album(80)
    paths = sorted(folder.rglob("*.png"))
    names = [path.relative_to(folder).as_posix() for path in paths]
    penult("describe", folder, "--out", tmp_path / "v.parquet")
    expected = [row["descriptor"] for row in rows_of(tmp_path / "v.parquet")]
    photos = [path.read_bytes() for path in paths]
    pq.write_table(pa.table({"image": photos, "label": ["x"] * 80}), tmp_path / "bytes.parquet", row_group_size=30)
    pq.write_table(pa.table({"file": names, "sku": range(100, 180)}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"id": ["a", "b"], "image": [None, photos[0]]}), tmp_path / "hole.parquet")
    assert penult("describe", "--from", tmp_path / "bytes.parquet", "--out", tmp_path / "b.parquet")[0] == 0
    rows = rows_of(tmp_path / "b.parquet")
    assert [(r["id"], r["label"], r["descriptor"]) for r in rows] == [(str(n), "x", d) for n, d in enumerate(expected)]
    chosen = ["--from", tmp_path / "paths.parquet", "--column", "file"]
    penult("describe", folder, *chosen, "--out", tmp_path / "p.parquet")
    assert [(r["id"], r["descriptor"]) for r in rows_of(tmp_path / "p.parquet")] == list(
        zip(names, expected, strict=True)
    )
    penult("describe", folder, *chosen, "--id-column", "sku", "--out", tmp_path / "s.parquet")
    assert [r["id"] for r in rows_of(tmp_path / "s.parquet")] == [str(n) for n in range(100, 180)]
    assert penult("describe", "--from", tmp_path / "hole.parquet", "--out", tmp_path / "h.parquet")[0] == 1
    assert [(r["id"], r["error"]) for r in rows_of(tmp_path / "h.parquet")] == [
        ("a", "INVALID_ARGUMENT: row 0 has no image"), ("b", None),
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [{}, {"id": [f"i{n}" for n in range(2000)]}])
def test_a_column_of_bytes_is_resumed(begin, running, penult, tmp_path, colour, ids):
    """Rows that are whole are passed over, in the midst of a row group too; with or without ids none is lost or doubled."""
    source, out = tmp_path / "s.parquet", tmp_path / "v.parquet"
    pq.write_table(pa.table({"image": [colour(n) for n in range(2000)], **ids}), source, row_group_size=300)
    with Client(running.target) as client:
        told = client.get_model()
        whole = client.describe([colour(n) for n in range(1000)]).results
    described = Described("light", 1, told.version.fingerprint, 3)
    with Parts.open(out, False) as parts:
        parts.described = described
        parts.add([Row(ids["id"][n] if ids else str(n), "", whole[n], None) for n in range(1000)])
    assert penult("describe", "--from", source, "--out", out)[0] == 0
    rows = rows_of(out)
    assert [row["id"] for row in rows] == (ids["id"] if ids else [str(n) for n in range(2000)])
    with Client(running.target) as client:
        np.testing.assert_array_equal(
            np.float32([row["descriptor"] for row in rows]), client.describe([colour(n) for n in range(2000)]).results
        )


def test_failed_photos_are_rows_with_an_error(album, penult, tmp_path):
    """What cannot be read or is no photo has code and message in its row, and no descriptor; the exit code is 1."""
    folder = album(6)
    (folder / "c1" / "bad.png").write_bytes(b"text")
    (folder / "c1" / "gone.png").symlink_to(folder / "nowhere.png")
    code, told, err = penult("describe", folder, "--out", tmp_path / "v.parquet")
    assert (code, err) == (1, "")
    assert "2 of them could not be described" in told
    lost = {row["id"]: row for row in rows_of(tmp_path / "v.parquet") if row["error"]}
    assert set(lost) == {"c1/bad.png", "c1/gone.png"}
    assert lost["c1/bad.png"]["error"].startswith("INVALID_ARGUMENT: the data are not")
    assert lost["c1/gone.png"]["error"].startswith("NOT_FOUND: ")
    assert {row["descriptor"] for row in lost.values()} == {None}


def test_the_result_goes_into_the_index(penult, running, tmp_path, encode):
    """penult index add takes the file as it is, leaves errors out, and lookup finds each photo by itself."""
    folder = tmp_path / "hues"
    for n in range(20):
        path = folder / f"c{n % 2}" / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((8, 8, 3), (10 + 12 * n, 250 - 12 * n, 40), dtype=np.uint8)))
    (folder / "bad.png").write_bytes(b"text")
    penult("describe", folder, "--out", tmp_path / "v.parquet")
    code, told, _ = penult("index", "add", "hues", tmp_path / "v.parquet", "--model", "light")
    assert (code, told.splitlines()[0]) == (0, "20 of 21 items are in hues")
    assert told.splitlines()[1].strip().startswith("1 rows were left out")
    again = json.loads(penult("index", "add", "hues", tmp_path / "v.parquet", "--json")[1])
    assert again == {"collection": "hues", "added": 20, "failed": [], "left_out": 1}
    with Client(running.target) as client:
        (about,) = [each for each in client.list_collections() if each.name == "hues"]
        assert (about.items, about.fields) == (20, {})
        paths = sorted(folder.rglob("c*/*.png"))
        found = client.lookup(paths, "hues", k=1).results
    assert [(hits[0].id, hits[0].label) for hits in found] == [
        (path.relative_to(folder).as_posix(), path.parent.name) for path in paths
    ]


def test_the_index_refuses_another_models_descriptors(
    album, penult, running, tmp_path, publish_brightness, start_server
):
    """index add --model NAME looks at the file's fingerprint first, and refuses another model's in one line."""
    penult("describe", album(6), "--out", tmp_path / "v.parquet")
    publish_brightness(tmp_path / "other", "light", nan_at_white=True)
    other = start_server(tmp_path / "other", "--lookup", str(tmp_path / "lookup"))
    code, told, err = penult("index", "add", "x", tmp_path / "v.parquet", "--model", "light", target=other.target)
    assert (code, told, err.count("\n")) == (1, "", 1)
    assert "was described by light version 1 (" in err
    with Client(other.target) as client:
        assert client.list_collections() == []


def test_a_new_version_in_mid_run_changes_nothing(
    album, begin, penult, tmp_path, publish_brightness, start_server, wait_for, reached
):
    """A run stays with the version that it began with where that is served on, and ends with one line where it is not."""
    publish_brightness(tmp_path / "models")
    publish_brightness(tmp_path / "both")
    publish_brightness(tmp_path / "both", nan_at_white=True)
    one = start_server(tmp_path / "models", "--watch-s", "0.1")
    folder, out = album(600), tmp_path / "v.parquet"
    last = sorted(folder.rglob("*.png"))[100]
    photo = pipe_in(last)
    process = begin(one.target, *listed(folder), "--out", out)
    with Client(one.target) as client:
        pipe = reached(last)
        publish_brightness(tmp_path / "models", nan_at_white=True)
        wait_for(lambda: client.get_model().version.version == 2)
    feed(last, pipe, photo)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "light version 1 (" in err
    assert "is no longer served" in err
    code, _, err = penult("describe", folder, "--out", out, target=one.target)
    assert (code, err.count("\n"), "--pin light=1" in err) == (1, 1, True)
    two = start_server(tmp_path / "both", "--pin", "light=1,light=2")
    assert penult("describe", folder, "--out", out, target=two.target)[0] == 0
    assert {(row["version"], row["error"]) for row in rows_of(out)} == {(1, None)}
    assert len(rows_of(out)) == 600


def test_another_model_than_the_parts_is_refused(album, penult, tmp_path, running):
    """Parts of another fingerprint are one line, and stay; --restart begins anew."""
    folder, out = album(6), tmp_path / "v.parquet"
    with Parts.open(out, False) as parts:
        parts.described = Described("light", 1, "f" * 64, 3)
        parts.add([Row("c0/00000.png", "c0", np.ones(3, np.float32), None)])
        parts.flush()
    code, _, err = penult("describe", folder, "--out", out)
    assert (code, err.count("\n")) == (1, 1)
    assert "was started with light version 1 (ffffffffffff)" in err
    assert "--restart" in err
    assert len(list(parts_of(out).glob("*.parquet"))) == 1
    assert penult("describe", folder, "--out", out, "--restart")[0] == 0
    assert [row["id"] for row in rows_of(out)] == [f"c{n // 2}/{n:05d}.png" for n in range(6)]


def test_a_whole_file_is_not_overwritten(album, penult, tmp_path):
    """The same command after the end is one line; --restart makes the file anew and drops nothing before."""
    folder, out = album(6), tmp_path / "v.parquet"
    penult("describe", folder, "--out", out)
    before = out.stat().st_mtime_ns
    code, _, err = penult("describe", folder, "--out", out)
    assert (code, out.stat().st_mtime_ns) == (1, before)
    assert "is complete; --restart" in err
    (folder / "c0" / "more.png").write_bytes((folder / "c0" / "00000.png").read_bytes())
    assert penult("describe", folder, "--out", out, "--restart")[0] == 0
    assert len(rows_of(out)) == 7
    assert [path.name for path in tmp_path.glob("v.parquet*")] == ["v.parquet"]


def test_photos_that_changed_are_not_resumed(album, penult, tmp_path, running):
    """Where the first photos are no longer those whose rows are whole, going on would lose some: one line says so."""
    folder, out = album(6), tmp_path / "v.parquet"
    with Client(running.target) as client:
        fingerprint = client.get_model().version.fingerprint
    with Parts.open(out, False) as parts:
        parts.described = Described("light", 1, fingerprint, 3)
        parts.add([Row("c0/00001.png", "c0", np.ones(3, np.float32), None)])
        parts.flush()
    code, _, err = penult("describe", folder, "--out", out)
    assert (code, err.count("\n")) == (1, 1)
    assert "number 0 was 'c0/00001.png', now it is 'c0/00000.png'; --restart" in err


def test_two_runs_do_not_share_parts(tmp_path):
    """While one run writes, another for the same file is refused, and the first one's parts stay."""
    out = tmp_path / "v.parquet"
    with Parts.open(out, False):
        with pytest.raises(PartsError, match="another penult describe is writing"), Parts.open(out, True):
            pass
        assert parts_of(out).is_dir()
    assert not parts_of(out).exists()


def test_ctrl_c_says_how_to_go_on(album, begin, penult, running, tmp_path, wait_for, reached):
    """Ctrl-C keeps what has come and ends with one line; the same command goes on to all rows."""
    folder, out = album(1500), tmp_path / "v.parquet"
    last = sorted(folder.rglob("*.png"))[1200]
    photo = pipe_in(last)
    process = begin(running.target, *listed(folder), "--out", out)
    wait_for(lambda: list(parts_of(out).glob("*.parquet")))
    pipe = reached(last)
    process.send_signal(signal.SIGINT)
    told = process.stderr.readline()
    process.wait(60)  # the thread that waits for the file is not waited for
    assert (process.returncode, process.stderr.read()) == (1, "")
    os.close(pipe)
    last.unlink()
    last.write_bytes(photo)
    kept = sum(pq.read_metadata(path).num_rows for path in parts_of(out).glob("*.parquet"))
    assert told == f"penult: interrupted; {kept} photos are kept; the same command resumes there\n"
    assert 1000 <= kept <= 1200
    assert penult("describe", folder, "--out", out)[0] == 0
    assert len({row["id"] for row in rows_of(out)}) == len(rows_of(out)) == 1500


def test_a_server_that_is_started_anew_is_waited_for(album, begin, quick, tmp_path, start_server, reached):
    """While nobody answers in mid-run, the run waits; what comes back in time finds it going on."""
    folder, out = album(400), tmp_path / "v.parquet"
    last = sorted(folder.rglob("*.png"))[100]
    photo = pipe_in(last)
    first = start_server(quick)
    process = begin(first.target, *listed(folder), "--out", out)
    pipe = reached(last)
    first.process.kill()
    first.process.wait(120)
    feed(last, pipe, photo)
    start_server(quick, "--port", first.target.rpartition(":")[2])
    told, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert told.startswith("400 photos are in")
    assert len({row["id"] for row in rows_of(out)}) == 400


def test_without_pyarrow_one_line_says_what_to_install(run_python):
    """The base install has no pyarrow: --out says which extra has."""
    code = """
import sys
sys.modules["pyarrow"] = None
from penult import cli
raise SystemExit(cli.main(["describe", ".", "--out", "v.parquet"]))
"""
    result = run_python("-c", code)
    assert result.returncode == 1
    assert (
        result.stderr
        == "penult: penult describe needs pyarrow: in the folder of penult's source, run pip install '.[parquet]'\n"
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [(("describe",), "name photos"), (("describe", "x.png", "--list", "t.parquet"), "need --out"),
     (("describe", "--out", "v.parquet"), "name a FOLDER"), (("describe", "absent", "--out", "v.parquet"), "is not a folder"),
     (("describe", "d", "e", "--out", "v.parquet"), "one FOLDER"), (("describe", "e", "--out", "v.parquet"), "holds no JPEG"),
     (("describe", "--list", "absent", "--out", "v.parquet"), "there is no absent"),
     (("describe", "--from", "d/x.png", "--out", "v.parquet"), "cannot be read"),
     (("describe", "--from", "t.parquet", "--out", "v.parquet"), "has no column 'image'; it has n"),
     (("describe", "--from", "t.parquet", "--column", "n", "--out", "v.parquet"), "photos are bytes or paths"),
     (("describe", "d", "--out", "v.parquet", "--model", "absent"), "no such model")],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(penult, tmp_path, monkeypatch, photos, argv, told):
    """Each mistake is one line that says what to do; no part and no file is left of it."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"n": [1]}), "t.parquet")
    for folder in ("d", "e"):
        Path(folder).mkdir()
    Path("d/x.png").write_bytes(photos[0])
    code, out, err = penult(*argv)
    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1)
    assert told in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "e", "t.parquet"]
