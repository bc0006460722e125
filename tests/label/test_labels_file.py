"""The label file: what is acknowledged is in it, what others wrote stays, and penult train reads it."""

import csv
import errno
import fcntl
import os
import random
import resource
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from penult.export.data import tables
from penult.label.errors import LabelFileError
from penult.label.labels_file import Label, LabelsFile

Open = Callable[..., LabelsFile]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the label file is, beside the folder of photos."""
    (tmp_path / "photos").mkdir()
    return tmp_path / "labels.csv"


@pytest.fixture
def opened(path: Path):
    """Open the label file, as often as wanted: each closes the one before."""
    files: list[LabelsFile] = []

    def open_(given: Path = path, root: Path = path.parent / "photos") -> LabelsFile:
        while files:
            files.pop().close()
        files.append(LabelsFile(given, root))
        return files[-1]

    yield open_
    while files:
        files.pop().close()


def rows_of(path: Path) -> dict[str, str]:
    """The label of each image, as penult train and as the module csv read the file."""
    by_train = {row.image: row.label for row in tables.read_csv(path)}
    with path.open(newline="", encoding="utf-8-sig") as file:
        by_csv = {row["image"]: row["label"] for row in csv.DictReader(file)}
    assert by_train == by_csv
    return by_train


def test_a_new_file_holds_what_was_answered_and_is_continued(opened: Open, path: Path):
    """Labels, changes, what is taken back and skipped are there after the next start, in order."""
    file = opened()
    file.put([Label("a.jpg", "cat", "typical"), Label("b/c.jpg", "dog", "unsure", "cat")])
    file.put([Label("d.jpg", "cat")])
    file.skip(["e.jpg", "f.jpg"])
    file.put([Label("a.jpg", "dog"), Label("f.jpg", "dog", "random")])
    file.take_back(["d.jpg", "e.jpg"])
    file.skip(["g.jpg", "a.jpg"])
    assert path.read_text() == (
        "image,label,picked,guess\na.jpg,dog,typical,\nb/c.jpg,dog,unsure,cat\nf.jpg,dog,random,\n"
    )
    again = opened()
    assert list(again.labels.values()) == [
        Label("a.jpg", "dog", "typical"), Label("b/c.jpg", "dog", "unsure", "cat"), Label("f.jpg", "dog", "random"),
    ]  # fmt: skip
    assert again.skipped == {"g.jpg"}
    assert again.notes == []


def test_a_new_label_is_appended_and_only_a_changed_one_rewrites(opened: Open, path: Path):
    """A hundred thousand rows are not written again for one answer."""
    file = opened()
    inode = path.stat().st_ino
    file.put([Label("a.jpg", "cat")])
    file.put([Label("b.jpg", "cat"), Label("c.jpg", "cat")])
    assert path.stat().st_ino == inode
    file.put([Label("b.jpg", "cat")])
    assert path.stat().st_ino == inode
    file.put([Label("b.jpg", "dog")])
    assert path.stat().st_ino != inode


NAMES = (
    "plain.jpg", "a,b.jpg", 'say "hi".jpg', "=SUM(A1).jpg", "two\nlines.jpg", " space.jpg", "ünïcode.jpg", "semi;colon.jpg",
    unicodedata.normalize("NFD", "é.jpg"), "data:x.jpg", "back\\slash.jpg", "tab\t.jpg", "-1.jpg", "日本/写真.jpg", "cr\r.jpg",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_any_name_comes_back_and_is_found_by_training(opened: Open, path: Path, kind: str):
    """Commas, quotes, formulas, line ends, spaces and Unicode forms in names and labels survive."""
    path, root = path.with_suffix(f".{kind}"), path.parent / "photos"
    wanted = {name: Label(name, f"{name.strip().replace(chr(10), '').replace(chr(13), '').replace(chr(9), '')} L")
              for name in NAMES}  # fmt: skip
    for name in NAMES:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    opened(path).put(list(wanted.values()))
    again = opened(path)
    assert again.labels == {
        name: Label(name, unicodedata.normalize("NFC", label.label)) for name, label in wanted.items()
    }
    spelt = [os.path.normpath(row.image) for row in tables.read_csv(path)]
    assert [(root / each).is_file() for each in spelt] == [True] * len(NAMES)


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (Label("a.jpg", " "), "empty"), (Label("a.jpg", "two\nlines"), "unprintable"),
        (Label(os.fsdecode(b"\xff.jpg"), "cat"), "not UTF-8"),
    ],
)  # fmt: skip
def test_what_no_label_file_can_hold_is_refused(opened: Open, path: Path, label: Label, why: str):
    """One line, and nothing of the same call is written."""
    file = opened()
    before = path.read_bytes()
    with pytest.raises(LabelFileError, match=why):
        file.put([Label("b.jpg", "dog"), label])
    assert (path.read_bytes(), dict(file.labels)) == (before, {})


# -- files that exist ---------------------------------------------------------------------------------------------------

OLD = "\r\n".join(
    [
        "Image;note;LABEL;split;group",
        "a.jpg; kept as is ;cat;train;g1",
        '"b.jpg";"say ""no""";dog;test;',
        "",
        "c.jpg;;cat;;",
    ]
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["", "\r\n"])
def test_an_existing_file_keeps_its_columns_order_and_spelling(opened: Open, path: Path, encoding: str, end: str):
    """Only the rows that change are spelt anew, and what has no column is kept beside the file."""
    path.write_bytes((OLD + end).encode(encoding))
    file = opened()
    assert {label.image: label.label for label in file.labels.values()} == {
        "a.jpg": "cat",
        "b.jpg": "dog",
        "c.jpg": "cat",
    }
    file.put([Label("ö.jpg", "fox", "random", "cat")])
    expected = OLD + "\r\nö.jpg;;fox;;\r\n"
    assert path.read_bytes() == expected.encode(encoding)
    file.put([Label("b.jpg", "fox", "check", "dog")])
    expected = expected.replace('"b.jpg";"say ""no""";dog', 'b.jpg;"say ""no""";fox')
    assert path.read_bytes() == expected.encode(encoding)
    again = opened()
    assert again.labels["ö.jpg"] == Label("ö.jpg", "fox", "random", "cat")
    assert again.labels["b.jpg"] == Label("b.jpg", "fox", "check", "dog")


def test_a_row_taken_back_gets_its_other_values_again(opened: Open, path: Path):
    """A group or a split is not lost when a label is taken back and given again, after a restart too."""
    path.write_text("image,label,group\na.jpg,cat,g1\nb.jpg,dog,\n")
    opened().take_back(["a.jpg"])
    assert path.read_text() == "image,label,group\nb.jpg,dog,\n"
    opened().put([Label("a.jpg", "fox")])
    assert path.read_text() == "image,label,group\nb.jpg,dog,\na.jpg,fox,g1\n"


def test_a_list_of_images_without_labels_is_filled(opened: Open, path: Path):
    """Empty labels are no labels; the rows get theirs, and lose them again."""
    path.write_text("image,label\na.jpg,\nb.jpg,\n")
    file = opened()
    assert not file.labels
    assert "2 rows of labels.csv have no label" in file.notes[0]
    file.put([Label("b.jpg", "dog")])
    assert path.read_text() == "image,label\na.jpg,\nb.jpg,dog\n"
    file.take_back(["b.jpg"])
    assert path.read_text() == "image,label\na.jpg,\nb.jpg,\n"


def test_paths_from_the_files_own_folder_are_kept_so(opened: Open, path: Path):
    """A file whose paths start from its own folder goes on like that; Windows and absolute paths are understood."""
    photos = path.parent / "photos"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (photos / name).touch()
    path.write_text(f"image,label\nphotos/a.jpg,cat\nphotos\\b.jpg,dog\n{photos}/c.jpg,cat\nelsewhere/d.jpg,cat\n")
    file = opened()
    assert {each.image: each.label for each in file.labels.values()} == {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "cat"}
    assert "1 rows of labels.csv name images outside" in file.notes[0]
    file.put([Label("sub/e.jpg", "fox"), Label("b.jpg", "fox")])
    assert path.read_text().splitlines()[1:] == [
        "photos/a.jpg,cat", "photos\\b.jpg,fox", f"{photos}/c.jpg,cat", "elsewhere/d.jpg,cat", "photos/sub/e.jpg,fox",
    ]  # fmt: skip
    assert file.train_arguments == [str(path)]


def test_paths_of_a_new_file_start_from_the_folder(opened: Open, path: Path):
    """As `penult train labels.csv --images FOLDER` reads them."""
    assert opened().train_arguments == [str(path), "--images", str(path.parent / "photos")]


DAMAGED = {
    "two labels": ("image,label\na.jpg,cat\n./a.jpg,dog\n", "row 3: ./a.jpg has two labels, 'dog' and 'cat'"),
    "no column": ("name,label\na.jpg,cat\n", "does not name the columns"),
    "a value too many": ("image,label\na.jpg,cat,dog\nb.jpg,cat\n", "row 2: 3 values for 2 columns"),
    "an open quote": ('image,label\n"a.jpg,cat\nb.jpg,cat\n', "row 2: not readable as CSV"),
    "a zero byte": ("image,label\na.jpg,\0cat\n", "row 2: a zero byte"),
    "no image": ("image,label\n,cat\n", "row 2: no image"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_line_and_is_not_touched(opened: Open, path: Path, kind: str):
    """What cannot be read is not repaired by guessing."""
    text, why = DAMAGED[kind]
    path.write_text(text)
    with pytest.raises(LabelFileError, match=why) as caught:
        opened()
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["labels.parquet", "labels", "no/labels.csv", "photos.csv"])
def test_a_place_for_no_label_file_is_refused(opened: Open, path: Path, name: str):
    """Another ending, a folder that does not exist, and a folder in the file's place."""
    (path.parent / "photos.csv").mkdir()
    with pytest.raises(LabelFileError, match=r"name another|name a file such as labels\.csv"):
        opened(path.parent / name)


def test_a_link_is_written_through(opened: Open, path: Path):
    """The link stays a link, and its target is locked for whatever name leads to it."""
    target = path.parent / "photos" / "real.csv"
    path.symlink_to(target)
    file = opened()
    file.put([Label("a.jpg", "cat")])
    file.put([Label("a.jpg", "dog")])
    assert path.is_symlink()
    assert rows_of(target) == {"a.jpg": "dog"}
    with pytest.raises(LabelFileError, match="is open in another penult label"):
        LabelsFile(target)


def test_mode_and_scratch_files(opened: Open, path: Path):
    """A rewritten file keeps its mode, and what a killed process left beside it is gone."""
    path.write_text("image,label\na.jpg,cat\n")
    path.chmod(0o640)
    (path.parent / ".labels.csv.tmp").write_text("half")
    file = opened()
    file.put([Label("a.jpg", "dog")])
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in path.parent.iterdir()) == ["labels.csv", "labels.csv.penult", "photos"]


# -- what was cut off ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["image,label,picked,guess", "image,label", "note,image,label"])
def test_a_file_cut_anywhere_has_whole_labels_only(opened: Open, path: Path, header: str):
    """Cut at any byte of the last row, that row is whole or gone; the rows before it are there, and labelling goes on."""
    path.write_text(f"{header}\n")
    opened().put([Label("a.jpg", "glass", "random"), Label("b.jpg", "metal")])
    before = path.stat().st_size
    opened().put([Label("Zoë, c.jpg", "gläss", "unsure", "metal")])
    data = path.read_bytes()
    for size in range(before, len(data)):
        path.write_bytes(data[:size])
        file = opened()
        assert {each.label for each in file.labels.values()} <= {"glass", "metal", "gläss"}
        assert len(file.labels) in (2, 3)
        assert bool(file.notes) == (len(file.labels) == 2 and size > before), size
        file.put([Label("d.jpg", "metal")])
        assert len(rows_of(path)) == len(file.labels)
        assert rows_of(path)["d.jpg"] == "metal"


def test_zeros_after_a_power_failure_are_removed(opened: Open, path: Path):
    """A file system may have reserved space and lost what was in it."""
    opened().put([Label("a.jpg", "cat")])
    with path.open("ab") as file:
        file.write(bytes(300))
    assert "was cut off" in opened().notes[0]
    assert rows_of(path) == {"a.jpg": "cat"}


def test_an_empty_file_begins_anew(opened: Open, path: Path):
    """As `touch labels.csv` makes it."""
    path.touch()
    opened().put([Label("a.jpg", "cat")])
    assert rows_of(path) == {"a.jpg": "cat"}


def test_a_cut_side_file_loses_its_last_line_only(opened: Open, path: Path):
    """The file beside it may be cut too, and deleted."""
    opened().skip(["a.jpg", "b.jpg"])
    side = path.with_name("labels.csv.penult")
    side.write_bytes(side.read_bytes()[:-4])
    file = opened()
    assert file.skipped == {"a.jpg"}
    file.skip(["c.jpg"])
    assert opened().skipped == {"a.jpg", "c.jpg"}
    side.unlink()
    assert opened().skipped == set()


# -- other processes and programs ---------------------------------------------------------------------------------------


def test_a_second_process_is_refused_until_the_first_is_killed(opened: Open, path: Path):
    """The line names the file and the process; the lock goes with kill -9."""
    code = f"""if True:
        from pathlib import Path
        from penult.label.labels_file import LabelsFile
        file = LabelsFile(Path({str(path)!r})); print("open", flush=True); input()"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(
            LabelFileError, match=rf"labels.csv is open in another penult label \(process {process.pid}\)"
        ):
            opened()
        process.kill()
    opened()


def test_another_programs_rows_and_ours_both_stay(opened: Open, path: Path):
    """A spreadsheet that has read the file earlier saves it: its changes count, and answers since are written again."""
    path.write_text("image,label,note\na.jpg,cat,\nb.jpg,dog,\nc.jpg,dog,\nd.jpg,cat,\n")
    file = opened()
    old = path.read_text()
    file.put([Label("e.jpg", "fox", "random"), Label("a.jpg", "fox"), Label("c.jpg", "fox")])
    file.take_back(["d.jpg"])
    assert not file.refresh()
    new = path.parent / "new"
    new.write_text(old.replace("b.jpg,dog,", "b.jpg,cow,seen").replace("c.jpg,dog", "c.jpg,cow") + "f.jpg,cow,\n")
    new.replace(path)
    assert file.refresh()
    assert rows_of(path) == {"a.jpg": "fox", "b.jpg": "cow", "c.jpg": "cow", "e.jpg": "fox", "f.jpg": "cow"}
    assert {each.image: each.label for each in file.labels.values()} == rows_of(path)
    assert "b.jpg,cow,seen\n" in path.read_text()
    assert file.labels["e.jpg"].picked == "random"
    assert "3 answers that it lacked were written again" in file.notes[-1]


def test_a_put_first_reads_what_another_program_wrote(opened: Open, path: Path):
    """Without refresh() too, nothing of others is overwritten."""
    file = opened()
    file.put([Label("a.jpg", "cat")])
    with path.open("a") as other:
        other.write("b.jpg,dog,,\n")
    file.put([Label("a.jpg", "fox")])
    assert rows_of(path) == {"a.jpg": "fox", "b.jpg": "dog"}


@pytest.mark.parametrize("text", ["image,label\na.jpg,cat\na.jpg,dog\n", "image,label\na.jpg", "junk\n"])
def test_a_file_that_another_program_damaged_is_not_overwritten(opened: Open, path: Path, text: str):
    """Refreshing and answering fail with one line until it is mended; then all is there."""
    file = opened()
    file.put([Label("b.jpg", "cat")])
    good = path.read_text()
    path.write_text(text)
    for attempt in (file.refresh, lambda: file.put([Label("c.jpg", "cat")])):
        with pytest.raises(LabelFileError):
            attempt()
        assert path.read_text() == text
    assert list(file.labels) == ["b.jpg"]
    path.write_text(good)
    file.put([Label("c.jpg", "cat")])
    assert rows_of(path) == {"b.jpg": "cat", "c.jpg": "cat"}


def test_a_deleted_file_is_written_again_but_not_into_another_folder(opened: Open, path: Path):
    """All that is known is written; after an unmount the folder is another one, and nothing is written there."""
    file = opened()
    file.put([Label("a.jpg", "cat")])
    path.unlink()
    file.put([Label("b.jpg", "dog")])
    assert rows_of(path) == {"a.jpg": "cat", "b.jpg": "dog"}
    folder = path.parent.rename(path.parent.with_name("moved"))
    path.parent.mkdir()
    with pytest.raises(LabelFileError, match="cannot write"):
        file.put([Label("c.jpg", "dog")])
    assert list(path.parent.iterdir()) == []
    assert len(rows_of(folder / path.name)) == 2
    path.parent.rmdir()
    folder.rename(path.parent)


# -- a disk that refuses ------------------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow_loses_nothing(opened: Open, path: Path):
    """The system cuts a write short at a limit: the answer is refused in one line, and the file is as before."""
    file = opened()
    file.put([Label(f"{n:04d}.jpg", "cat") for n in range(100)])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
    try:
        for change in ([Label("more.jpg", "cat")], [Label("0001.jpg", "a longer label")]):
            with pytest.raises(LabelFileError, match=r"cannot write .*labels.csv: .*; ") as caught:
                file.put(change)
            assert "\n" not in str(caught.value)
            assert path.read_bytes() == before
            assert len(file.labels) == 100
            assert file.labels["0001.jpg"].label == "cat"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.put([Label("more.jpg", "cat")])
    assert len(rows_of(path)) == 101
    assert not path.with_name(".labels.csv.tmp").exists()


def test_random_changes_and_restarts_equal_a_dictionary(opened: Open, path: Path):
    """After any order of answers, restarts and others' edits, the file holds what a dictionary would."""
    chance, expected, left, taken_back = random.Random(3), {}, set(), set()
    path.write_text("image;split;label\r\n")
    file = opened()
    for _ in range(150):
        image, label = f"{chance.randrange(40)}.jpg", chance.choice("abc")
        match chance.randrange(12):
            case 0:
                file = opened()
                taken_back.clear()
            case 1:
                file.take_back([image])
                taken_back.add(image)
                expected.pop(image, None)
                left.discard(image)
            case 2:
                file.skip([image])
                left |= {image} - expected.keys()
            case 3 if image not in expected.keys() | taken_back:
                with path.open("a", newline="") as other:
                    other.write(f"{image};val;{label}\r\n")
                assert file.refresh()
                expected[image] = label
            case _:
                images = {image, f"{chance.randrange(40)}.jpg"}
                file.put([Label(each, label) for each in images])
                expected |= dict.fromkeys(images, label)
        left -= expected.keys()
        assert {each.image: each.label for each in file.labels.values()} == expected
        assert file.skipped == left
    assert {row.image: row.label for row in tables.read_csv(path)} == expected


def test_a_file_system_without_locks_is_noted(opened: Open, monkeypatch: pytest.MonkeyPatch):
    """Labelling works there, and the note says what to avoid."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    file = opened()
    file.put([Label("a.jpg", "cat")])
    assert file.notes == ["the file system has no locks; do not open the label file in a second penult label"]
