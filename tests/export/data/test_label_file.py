"""Label files: the same photos as from folders, whoever wrote the file, and one line for each that cannot be used."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.attacks.heifs import Item, built, coded
from tests.export.splits import splits_of

from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits, check_photos
from penult.export.errors import DataError

Settings = Callable[..., TrainSettings]
Photos = Callable[..., Path]
_PARTS = ("train", "val", "test")


@pytest.fixture
def folder(make_photos: Photos, tmp_path: Path) -> Path:
    """Eight cats and eight dogs, without a split."""
    return make_photos(tmp_path / "photos", {"cat": 8, "dog": 8})


def _rows(folder: Path) -> list[tuple[str, str]]:
    return [(str(path.relative_to(folder)), path.parent.name) for path in sorted(folder.rglob("*.png"))]


def _csv(folder: Path, rows: list[tuple[str, ...]], header: str = "image,label", name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in (header, *(",".join(row) for row in rows))))
    return path


def _label_studio(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """Write what Label Studio exports of uploaded images: their names have eight digits in front."""
    tasks = [
        {"id": n, "data": {"image": f"/data/upload/3/0a1b2c3d-{Path(image).name}"},
         "annotations": [{"was_cancelled": False, "result": [{"type": "choices", "value": {"choices": [label]}}]}]}
        for n, (image, label) in enumerate(rows)
    ]  # fmt: skip
    tasks.append({"id": 99, "data": {"image": "/data/upload/3/skipped.png"}, "annotations": []})
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def _written(kind: str, folder: Path) -> Path:
    """Write the photos of a folder as a label file of a kind, in another order."""
    rows = _rows(folder)[::-1]
    text = "".join(f"{image};{label}\r\n" for image, label in [("image", "label"), *rows])
    path = folder / ("labels.tsv" if kind == "tsv" else "labels.csv")
    match kind:
        case "csv":
            return _csv(folder, rows)
        case "other columns":
            return _csv(folder, [("0", label, "", f'"./{image}"') for image, label in rows], "number,Label,note,Image")
        case "excel":
            path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        case "utf-16":
            path.write_bytes(text.replace(";", "\t").encode("utf-16"))
        case "tsv":
            path.write_text(text.replace(";", "\t"))
        case "windows paths":
            path.write_text(text.replace("/", "\\"))
        case "parquet":
            path = folder / "labels.parquet"
            pq.write_table(pa.table({"image": [row[0] for row in rows], "label": [row[1] for row in rows]}), path)
        case "json-min":
            path = folder / "export.json"
            path.write_text(json.dumps([{"image": f"/data/local-files/?d=x/y/{i}", "choice": c} for i, c in rows]))
    return path


@pytest.mark.parametrize(
    "kind", ["csv", "other columns", "excel", "utf-16", "tsv", "windows paths", "parquet", "json-min"]
)
def test_a_label_file_is_read_as_the_folders_it_names(settings: Settings, folder: Path, kind: str):
    """Splits, order, names and notes are the same, so everything that is made of them is the same."""
    by_folder = splits_of(settings())
    path = _written(kind, folder)
    assert splits_of(settings(data=path)) == by_folder
    assert by_folder.name(by_folder.train[0]).startswith("cat/")


def test_uploads_of_label_studio_are_found_by_their_own_names(settings: Settings, make_photos: Photos, tmp_path: Path):
    """An upload's eight digits are left out, tasks without an annotation too."""
    folder = make_photos(tmp_path / "photos", {"flat": 16})
    rows = [(f"{n:03d}.png", "cat" if n < 8 else "dog") for n in range(16)]
    splits = splits_of(settings(data=_label_studio(folder, rows), images=folder / "flat"))
    assert splits.classes == ("cat", "dog")
    named = {splits.name(photo): splits.classes[photo.label] for part in _PARTS for photo in getattr(splits, part)}
    assert named == dict(rows)


def test_splits_of_the_file_are_used_as_split_folders_are(settings: Settings, make_photos: Photos, tmp_path: Path):
    """Splits in any usual spelling; rows without one are for training; fractions are said to be idle."""
    for seed, part in enumerate(_PARTS):
        make_photos(tmp_path / "photos" / part, {"cat": 6, "dog": 6}, seed)
    folder = tmp_path / "photos"
    by_folder = splits_of(settings())
    spelt = {"train": "", "val": "Validation", "test": "TEST"}
    rows = [(image, label, spelt[image.partition("/")[0]]) for image, label in _rows(folder)]
    path = _csv(tmp_path, rows, "image,label,split")
    splits = splits_of(settings(data=path, images=folder))
    assert [getattr(splits, part) for part in _PARTS] == [getattr(by_folder, part) for part in _PARTS]
    assert splits.notes == ()
    idle = splits_of(settings(data=path, images=folder, val="0.5")).notes
    assert idle == ("--val 0.5 is not used: the label file names the val split",)


def test_an_export_of_ultralytics_is_a_folder_of_splits(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A classify data set of Ultralytics or Roboflow has train/, val/ or valid/, and test/ with class folders."""
    for seed, part in enumerate(("train", "valid", "test")):
        make_photos(tmp_path / "photos" / part, {"cat": 6, "dog": 6}, seed)
    assert splits_of(settings()).counts() == {"train": 12, "val": 12, "test": 12}


def test_missing_images_are_left_out_if_the_user_says_so(settings: Settings, folder: Path):
    """--skip-missing goes on, and a note names them."""
    path = _csv(folder, [*_rows(folder), ("cat/gone.png", "cat"), ("cat/000.png", "cat")])
    splits = splits_of(settings(data=path, skip_missing=True))
    assert sum(splits.counts().values()) == 16
    assert "1 images of the label file do not exist and are left out: cat/gone.png" in splits.notes
    assert "1 rows repeat an image of another row; each image counts once" in splits.notes


def test_excluded_photos_are_left_out(settings: Settings, folder: Path):
    """--exclude takes an edited suspects.csv or a list, by the names that reports show."""
    before = splits_of(settings())
    listed = folder.parent / "suspects.csv"
    listed.write_text(
        "image,label,suggested,score\ncat/000.png,cat,dog,0.9\ndog/007.png,dog,cat,0.8\nnot/there.png,,,\n"
    )
    splits = splits_of(settings(exclude=listed))
    left = {splits.name(photo) for part in _PARTS for photo in getattr(splits, part)}
    assert left == {before.name(photo) for part in _PARTS for photo in getattr(before, part)} - {
        "cat/000.png", "dog/007.png",
    }  # fmt: skip
    assert (
        "2 photos are left out by --exclude suspects.csv; 1 that it names are not among the photos: not/there.png"
        in splits.notes
    )
    listed.write_text("cat/000.png\ndog/007.png\n")
    assert splits_of(settings(exclude=listed)).train == splits.train


# -- files that cannot be used -----------------------------------------------------------------------------------------

_OK = "cat/000.png,cat\n"
_ROWS = "".join(f"{name}/00{n}.png,{name}\n" for name in ("cat", "dog") for n in range(8))
_TASK = {
    "data": {"image": "cat/000.png"},
    "annotations": [{"result": [{"type": "choices", "value": {"choices": ["a"]}}]}],
}
_BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty; list one image per row"),
    "no rows": ("image,label\n", "has no rows; list one image per row"),
    "blank rows": ("image,label\n\n,\n\n", "has no rows"),
    "no header": (_ROWS, ", row 1: 'cat/000.png,cat' does not name the columns image and label; begin with a row"),
    "other names": ("filename,class\n" + _ROWS, "row 1: 'filename,class' does not name .*; rename filename to image and class to label$"),
    "no label column": ("image,split\n" + _OK, "row 1: 'image,split' does not name"),
    "a column twice": ("image,label,image\n" + _OK, "row 1: the column image is there twice; remove one"),
    "another delimiter": ("image|label\ncat/000.png|cat\n", r"row 1: 'image\|label' does not name .* \(or with ; or tabs\)"),
    "another delimiter below": ("image,label\n" + _OK + "cat/001.png;cat\n", "row 3: 1 values for 2 columns; check its delimiter"),
    "a comma in a path": ("image,label\n" + _OK + "cat/a,b.png,cat\n", "row 3: 3 values for 2 columns; check its delimiter and quotes"),
    "an open quote": ('image,label\n' + _OK + '"cat/001.png,cat\ncat/002.png,cat\n', "row 3: not readable as CSV"),
    "a stray quote": ('image,label\n"cat/000.png"x,cat\n', "row 2: not readable as CSV"),
    "latin-1": (b"image,label\n" + _OK.encode() + "cat/001.png,p\xe9ch\xe9\n".encode("latin-1"), "row 3: not UTF-8; save the file as UTF-8, as with iconv"),
    "utf-16 without a mark": ("image,label\n".encode("utf-16-le"), "row 1: UTF-16 without a byte order mark, or no text; save"),
    "utf-16 cut short": ("image,label\ncat/000.png,cat\n".encode("utf-16")[:-1], "row 2: no longer UTF-16"),
    "a zero byte": ("image,label\ncat/000.png,c\0t\n", "row 2: a zero byte"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "row 1: not UTF-8"),
    "no image": ("image,label\n,cat\n", "row 2: no image; add its path, or remove the row"),
    "no label": ("image,label\n" + _OK + "cat/001.png,\n", "row 3: no label; add one, or remove the row"),
    "a label of control characters": ("image,label\ncat/000.png,c\x07t\n", r"row 2: the label 'c\\x07t' is unprintable; correct it"),
    "an unknown split": ("image,label,split\ncat/000.png,cat,dev\n", "row 2: the split 'dev' is not train, val or test; correct it"),
    "a missing image": ("image,label\n" + _ROWS + "cat/gone.png,cat\n", "row 18: cat/gone.png does not exist in .*photos; restore it, or leave out such images with --skip-missing"),
    "several missing images": ("image,label\n" + _ROWS + "cat/x.png,cat\ncat/y.png,cat\n", "row 18: cat/x.png does not exist in .*photos, and 1 more do not exist; restore"),
    "no image exists": ("image,label\nx/1.png,cat\nx/2.png,dog\n", "row 2: none of the 2 images exists in .*photos, such as x/1.png; give the folder .* with --images ROOT"),
    "a folder as image": ("image,label\ncat,cat\n", "row 2: cat is no file; give an image"),
    "an address": ("image,label\nhttps://example.org/cat.png,cat\n", "row 2: https://example.org/cat.png is not on this machine; download the image"),
    "two labels": ("image,label\n" + _OK + "./cat/000.png,dog\n", r"row 3: ./cat/000.png has two labels, 'dog' and 'cat' \(row 2\); keep the correct row"),
    "two splits": ("image,label,split\ncat/000.png,cat,train\ncat/000.png,cat,test\n", "row 3: cat/000.png has two splits, 'test' and 'train'"),
    "a label for tests only": ("image,label,split\n" + _ROWS.replace("\n", ",train\n").replace("dog/007.png,dog,train", "dog/007.png,dgo,test"), r"has labels without training images: 'dgo' \(row 17 \(did you mean 'dog'\?\)\); add some"),
    "no training images": ("image,label,split\n" + _ROWS.replace("\n", ",test\n"), "names no training images; add rows whose split is train"),
    "few of a label": ("image,label\n" + _ROWS.replace("07.png,dog", "07.png,eel"), "class 'eel' has 1 photos; at least 4 are needed"),
    "a group in two splits": ("image,label,split,group\n" + "".join(f"{name}/00{n}.png,{name},{'test' if n > 5 else 'train'},{n % 4}\n" for name in ("cat", "dog") for n in range(8)), r"2 groups are in two splits: '2' \(test and train\), '3' \(test and train\); give each one split"),
    "one group": ("image,label,group\n" + _ROWS.replace("\n", ",g\n"), "no val photos are left, because groups stay whole; use smaller groups"),
    "parquet.parquet": (b"PAR1 damaged", "is not readable as Parquet|cannot be read as Parquet"),
    "columns.parquet": (b"", "does not name the columns image and label"),
    "json.json": ("[{", r"cannot be read as JSON \(line 1\); export the project again"),
    "another.json": ('{"images": []}', "is no export of Label Studio, which is a list of tasks; export as JSON"),
    "tasks.json": (json.dumps([_TASK | {"annotations": [{"result": 3}]}]), "row 1: a damaged annotation; export the project again"),
    "labels.json": (json.dumps([_TASK | {"annotations": _TASK["annotations"] * 2}, _TASK | {"annotations": [{"result": [{"type": "choices", "value": {"choices": ["a", "b"]}}]}]}]), "row 2: several labels, 'a', 'b'; give each image one label"),
    "image.json": (json.dumps([_TASK | {"data": {"text": "hello"}}]), "row 1: no image; call the field"),
}  # fmt: skip


@pytest.mark.parametrize("name", _BROKEN)
def test_a_broken_label_file_is_one_line(settings: Settings, folder: Path, name: str):
    """The file, the row as a spreadsheet counts it, what is wrong, what to do; nothing is written."""
    content, line = _BROKEN[name]
    path = folder / (name if "." in name else "labels.csv")
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if name == "columns.parquet":
        pq.write_table(pa.table({"file": ["cat/000.png"], "label": ["cat"]}), path)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        splits_of(settings(data=path))
    assert re.search(line, caught.value.message), caught.value.message
    assert caught.value.message.isprintable()
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"images": Path("nowhere")}, "--images nowhere is not a folder; give the images' folder"),
        ({"val": "cat"}, "--val .*cat is a folder, which a label file does not go with; add a column split"),
        ({"exclude": Path("nowhere")}, "--exclude nowhere does not exist; give a file of image paths"),
    ],
)
def test_options_that_do_not_fit_are_one_line(settings: Settings, folder: Path, more: dict[str, object], line: str):
    """What the label file cannot be read with is refused before photos are read."""
    path = _csv(folder, _rows(folder))
    given = {key: str(folder / value) if key == "val" else value for key, value in more.items()}
    with pytest.raises(DataError, match=line):
        check_photos(PhotoSource.of(wanted := settings(data=path, **given)), wanted.out, wanted.val, wanted.test)


def test_options_of_label_files_are_refused_with_a_folder(settings: Settings, folder: Path):
    """--images beside a folder would promise what does not happen."""
    with pytest.raises(DataError, match="--images is for label files, and DATA is a folder; leave it out"):
        splits_of(settings(images=folder))


def test_an_exclude_file_that_names_none_is_refused(settings: Settings, folder: Path):
    """Names of another folder would leave everything in, silently."""
    listed = folder.parent / "list.txt"
    listed.write_text("other/1.png\n")
    with pytest.raises(
        DataError, match=r"names none of the photos; give paths as in suspects.csv, such as cat/000.png"
    ):
        splits_of(settings(exclude=listed))


# -- groups ------------------------------------------------------------------------------------------------------------


def _groups_of(splits: Splits, group_of: Callable[[str], str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for part in _PARTS:
        for photo in getattr(splits, part):
            found.setdefault(group_of(splits.name(photo)), set()).add(part)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_parted(settings: Settings, make_photos: Photos, tmp_path: Path, seed: int):
    """Photos of one group are in one split, whatever the seed, and each split has photos of each class."""
    folder = make_photos(tmp_path / "photos", {"cat": 60, "dog": 60})
    rows = [(image, label, str(int(image[4:7]) // 4)) for image, label in _rows(folder)]
    splits = splits_of(settings(data=_csv(folder, rows, "image,label,group"), seed=seed))
    groups = _groups_of(splits, lambda name: str(int(name[4:7]) // 4))
    assert len(groups) == 15
    assert all(len(parts) == 1 for parts in groups.values())
    assert all({photo.label for photo in getattr(splits, part)} == {0, 1} for part in _PARTS)
    assert "15 groups keep 120 photos together, at most 8 each" in splits.notes


def test_copies_join_the_groups_they_are_in(settings: Settings, folder: Path):
    """Two groups that share a photo, byte for byte, are one."""
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "000.png").read_bytes())
    rows = [(image, label, {"cat/000.png": "a", "cat/copy.png": "b", "cat/001.png": "b"}.get(image, "")) for image, label in _rows(folder)]  # fmt: skip
    for seed in range(5):
        splits = splits_of(settings(data=_csv(folder, rows, "image,label,group"), seed=seed))
        together = _groups_of(
            splits, lambda name: "ab" if name in ("cat/000.png", "cat/001.png", "cat/copy.png") else name
        )
        assert len(together["ab"]) == 1


@pytest.mark.parametrize("by_file", [False, True])
def test_photos_of_one_folder_are_a_group(settings: Settings, make_photos: Photos, tmp_path: Path, by_file: bool):
    """--group-by folder keeps what lies in one folder below the class together, from folders and from a label file."""
    for seed, name in enumerate("abcdefgh"):
        make_photos(tmp_path / "photos" / ("cat" if seed % 2 else "dog"), {name: 4}, seed)
    folder = tmp_path / "photos"
    data = (
        _csv(folder, [(str(p.relative_to(folder)), p.parts[-3]) for p in folder.rglob("*.png")]) if by_file else folder
    )
    splits = splits_of(settings(data=data, group_by="folder"))
    assert all(len(parts) == 1 for parts in _groups_of(splits, lambda name: name.rpartition("/")[0]).values())
    assert min(splits.counts().values()) >= 8


@pytest.mark.parametrize("suffix", [".avif", ".heic", ".webp", ".png"])
def test_every_format_may_name_its_time(settings: Settings, make_photos: Photos, tmp_path: Path, suffix: str):
    """Phones write HEIC: their times are read as those of JPEGs."""
    folder = make_photos(tmp_path / "photos", {"cat": 8, "dog": 8})
    exif = Image.Exif()
    exif[0x010F] = "Phone"
    exif.get_ifd(0x8769)[0x9003] = "2026:11:30 10:00:00"
    timed = [folder / "cat" / f"timed{n}{suffix}" for n in range(2)]
    for n, path in enumerate(timed):
        if suffix == ".heic":
            item = Item(b"Exif", struct.pack(">I", 6) + exif.tobytes(), refers=(b"cdsc", (1,)))
            path.write_bytes(built("heic", coded("heic").item(), item) + bytes(n and [0, 0, 0, 8, *b"free"]))
        else:
            Image.new("RGB", (32, 32), (n, 90, 200)).save(path, exif=exif)
    splits = splits_of(settings(group_by="exif-time"))
    assert "1 groups keep 2 photos together, at most 2 each" in splits.notes


def test_without_groups_a_note_says_so(settings: Settings, folder: Path):
    """Photos without times are not grouped, and the splits are the usual ones."""
    splits = splits_of(settings(group_by="exif-time"))
    assert "no photos are in one group, so the splits are those without groups" in splits.notes
    assert splits.train == splits_of(settings()).train


def test_photos_of_one_moment_are_a_group(settings: Settings, make_photos: Photos, tmp_path: Path):
    """--group-by exif-time joins what one camera took within ten seconds; photos without a time stand alone."""
    folder = make_photos(tmp_path / "photos", {"cat": 24, "dog": 24})
    for path in folder.rglob("*.png"):
        number, exif = int(path.stem), Image.Exif()
        if number == 23:
            continue
        exif[0x0110] = path.parent.name
        # Bursts of four photos, 4 s apart, a minute after each other.
        exif.get_ifd(0x8769)[0x9003] = f"2026:11:30 10:{number // 4:02d}:{number % 4 * 4:02d}"
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    splits = splits_of(settings(group_by="exif-time"))
    groups = _groups_of(splits, lambda name: f"{name[:3]} {int(name[4:7]) // 4}" if "23" not in name else name)
    assert all(len(parts) == 1 for parts in groups.values())
    assert "12 groups keep 46 photos together, at most 4 each" in splits.notes
    assert "2 photos are without a time in the EXIF data, and stand alone" in splits.notes
