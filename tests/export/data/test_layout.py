"""Folders as other tools write them: which splits and classes are found, and what is said of all the rest."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.export.splits import splits_of

from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits, check_photos
from penult.export.errors import DataError

Settings = Callable[..., TrainSettings]
Tree = Callable[..., Path]
_NFC, _NFD = (unicodedata.normalize(form, "péché") for form in ("NFC", "NFD"))


@pytest.fixture
def tree(tmp_path: Path, photo_bytes: Callable[[int], bytes]) -> Tree:
    """tree("train/cat 5", "notes.txt"): make tmp_path/photos of folders with so many photos, and files of text."""
    made = 0

    def make(*entries: str, root: Path = tmp_path / "photos") -> Path:
        nonlocal made
        for entry in entries:
            name, _, count = entry.rpartition(" ")
            path = root / (name if count.isdecimal() else entry)
            if not count.isdecimal():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"text")
                continue
            path.mkdir(parents=True, exist_ok=True)
            for _ in range(int(count)):
                made += 1
                (path / f"{made:03d}.png").write_bytes(photo_bytes(made))
        return root

    return make


def _parts(splits: Splits) -> dict[str, dict[str, int]]:
    return {
        part: dict(sorted(Counter(splits.classes[photo.label] for photo in getattr(splits, part)).items()))
        for part in ("train", "val", "test")
    }


def _refused(settings: TrainSettings) -> str:
    """Return the one line with which a folder is refused, by its names alone and as it is read."""
    lines = []
    for refuse in (lambda: check_photos(PhotoSource.of(settings), settings.out, settings.val, settings.test),
                   lambda: splits_of(settings)):  # fmt: skip
        with pytest.raises(DataError) as caught:
            refuse()
        lines.append(caught.value.message)
    assert lines[0] == lines[1]
    assert lines[0].isprintable()
    lines[0].encode()
    return lines[0]


# -- splits by other names ---------------------------------------------------------------------------------------------

_TWO = ("cat", "dog")
_LAYOUTS = {
    "roboflow": (["train/{} 9", "valid/{} 3", "test/{} 2", "README.roboflow.txt", "README.dataset.txt"],
                 ["splits by folder name: train is train/, val is valid/, test is test/"]),
    "keras": (["Training/{} 9", "Validation/{} 3", "Testing/{} 2"], ["train is Training/, val is Validation/, test is"]),
    "capitals": (["TRAIN/{} 9", "VAL/{} 3", "TEST/{} 2"], []),
    "intel": (
        ["seg_train/seg_train/{} 9", "seg_test/seg_test/{} 2", "seg_pred/seg_pred 4"],
        ["train is seg_train/, test is seg_test/", "1 folder is not used, because no split has such a name: seg_pred",
         "deeper than seg_train/, in seg_train/seg_train/", "deeper than seg_test/, in seg_test/seg_test/"],
    ),
    "an archive in a folder": (["archive/data/train/{} 9", "archive/data/test/{} 2"], ["in archive/data/; that folder"]),
    "a zip of macOS": (
        ["data/train/{} 9", "data/test/{} 2", "__MACOSX/data/train/{}/._1.png", "data/.DS_Store", "data/train/.DS_Store"],
        ["in data/; that folder", "1 file or folder is left out that systems add: __MACOSX (1)"],
    ),
    "set": (["training_set/{} 9", "test_set/{} 2"], ["train is training_set/, test is test_set/"]),
    "affixes behind": (["train_images/{} 9", "val_images/{} 3", "docs/a.pdf"], ["train is train_images/, val is val_images/", "no split has such a name: docs"]),
    "another train": (["train/{} 9", "train_mini/{} 5", "test/{} 2"], ["no split has such a name: train_mini"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_splits_of_other_tools_are_found(settings: Settings, tree: Tree, layout: str):
    """Splits are found under other names, in any case and nested; notes say what was taken for what."""
    entries, notes = _LAYOUTS[layout]
    tree(*(entry.format(name) for entry in entries for name in (_TWO if "{}" in entry else ("",))))
    check = settings()
    check_photos(PhotoSource.of(check), check.out, check.val, check.test)
    splits = splits_of(check)
    has = {part: any(part in entry.lower() for entry in entries) for part in ("val", "test")}
    counts = _parts(splits)
    assert splits.classes == _TWO
    assert counts["test"] == dict.fromkeys(_TWO, 2 if has["test"] else 1)
    assert sum(sum(part.values()) for part in counts.values()) == 2 * (9 + 3 * has["val"] + 2 * has["test"])
    for note in notes:
        assert any(note in each for each in splits.notes), splits.notes
    assert len([each for each in splits.notes if "set aside" not in each]) == len(notes), splits.notes


def test_no_split_is_found_where_classes_are_meant(settings: Settings, tree: Tree):
    """A class may be called train, test or toy_train: it holds photos, and other classes lie beside it."""
    tree("train 5", "bus 5", "toy_train 5", "tram/old 3", "tram/new 3")
    splits = splits_of(settings())
    assert splits.classes == ("bus", "toy_train", "train", "tram")
    assert "train/ counts as a class, because there are class folders beside it" in splits.notes


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["train/{} 9", "val/{} 2", "valid/{} 2"], ["has val/ and valid/; remove or rename one, or name one with --val DIR"]),
        (["train/{} 9", "TRAIN/{} 9"], ["has TRAIN/ and train/; remove or rename one"]),
        (["test/{} 9", "validation/{} 9"], ["has test/ and validation/ and no train/"]),
        (["{} 9", "test/{} 2"], ["has test/ beside class folders; move those into train/"]),
        (["train 9", "test 2"], ["train has 9 photos and no class folders"]),
        (["train/{} 9", "test 5"], ["test has 5 photos and no class folders"]),
        (["v1/train/{} 9", "v2/train/{} 9"], ["train/ is in 2 of its 2 folders; did you mean", "/v1 or ", "/v2?"]),
        (["a/{} 9", "papers/b.pdf"], ["class 'papers' has 0", "did you mean", "/a?"]),
    ],
)  # fmt: skip
def test_what_could_be_meant_in_two_ways_is_refused(
    settings: Settings, tree: Tree, entries: list[str], said: list[str]
):
    """Splits that are doubled, flat, without train/ or deeper than one way are one line that says what to do."""
    tree(*(entry.format(name) for entry in entries for name in (_TWO if "{}" in entry else ("",))))
    message = _refused(settings())
    assert [part for part in said if part not in message] == [], message


def test_an_option_chooses_between_two_splits(settings: Settings, tree: Tree, tmp_path: Path):
    """With --val naming one of val/ and valid/, the other is not in the way; the option's folder may be nested too."""
    tree("train/cat 9", "train/dog 9", "val/cat 2", "valid/cat 3", "valid/dog 3", "more/more/cat 1", "more/more/dog 1")
    assert _parts(splits_of(settings(val=str(tmp_path / "photos" / "valid"))))["val"] == {"cat": 3, "dog": 3}
    assert _parts(splits_of(settings(val=str(tmp_path / "photos" / "more"))))["val"] == {"cat": 1, "dog": 1}


def test_one_class_in_a_split_is_no_nesting(settings: Settings, tree: Tree):
    """A test folder with a single class whose photos lie in folders keeps that class."""
    tree("train/cat 9", "train/dog 9", "test/cat/may 2", "test/cat/june 2")
    assert _parts(splits_of(settings()))["test"] == {"cat": 4}


def test_one_level_more_is_followed(settings: Settings, tree: Tree, tmp_path: Path):
    """Class folders one level deeper are used with a note, and a model that was published beside them changes nothing."""
    folder = tree("animals/cat 9", "animals/dog 9", "readme.txt")
    (folder / "models" / "pets" / "1").mkdir(parents=True)
    splits = splits_of(settings(out=folder / "models" / "pets"))
    assert splits.classes == _TWO
    assert "the class folders are deeper than DATA, in animals/; that folder is used" in splits.notes


def test_a_split_given_as_data_is_hinted_at(settings: Settings, tree: Tree):
    """DATA/train works, and a note names the splits beside it that are not used."""
    folder = tree("train/cat 9", "train/dog 9", "valid/cat 2", "test/cat 2")
    splits = splits_of(settings(data=folder / "train"))
    assert "test/ and valid/ beside DATA is not used; give the folder above DATA, or --val and --test" in splits.notes
    splits = splits_of(settings(data=folder / "train", val=str(folder / "valid"), test=str(folder / "test")))
    assert not any("beside DATA" in note for note in splits.notes)


def test_splits_inside_of_classes_are_noted(settings: Settings, tree: Tree):
    """CLASS/train and CLASS/test belong to their class, and a note says that they are no splits."""
    tree("cat/train 6", "cat/test 3", "dog/train 6", "dog/test 3")
    splits = splits_of(settings())
    assert sum(splits.counts().values()) == 18
    assert "test/, train/ inside class folders are not used as splits; create DATA/train/CLASS for that" in splits.notes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photo.JPG", "photo.JPG is a file; give a folder that has one folder of photos per class"),
        ("photos.zip", "photos.zip is an archive; unpack it"),
        ("photos.tar.gz", "photos.tar.gz is an archive"),
        ("labels.xlsx", "is no file of labels that penult reads; save it as CSV with the columns image and label"),
        ("data.bin", "data.bin is not a folder; give a folder that has one folder of photos per class"),
    ],
)
def test_a_file_given_as_data_is_explained(settings: Settings, tree: Tree, name: str, said: str):
    """A photo, an archive, a label file: one line each that says what to give instead."""
    folder = tree(name)
    assert said in _refused(settings(data=folder / name))


def test_a_misspelt_folder_is_guessed(settings: Settings, tree: Tree, tmp_path: Path):
    """A folder that is not there is answered with the one that was probably meant."""
    tree("cat 9", "dog 9")
    assert "did you mean photos?" in _refused(settings(data=tmp_path / "phtos"))


def test_a_class_folder_given_as_data_is_explained(settings: Settings, tree: Tree):
    """A flat folder of photos is refused, and the folder above is named if it holds class folders."""
    folder = tree("cat 9", "dog 9")
    message = _refused(settings(data=folder / "cat"))
    assert "cat has 9 photos and no class folders; it needs one folder of photos per class; did you mean" in message
    assert message.endswith(f"{folder}?")


# -- what lies among the photos ----------------------------------------------------------------------------------------


def test_what_systems_add_is_left_out_and_counted(settings: Settings, tree: Tree):
    """Thumbnails of a NAS, waste bins, resource forks and the like are no classes and no photos; one note counts them."""
    tree("cat 5", "dog 5", "@eaDir/cat 3", "cat/@eaDir/001.jpg 2", "lost+found 0", "#recycle/cat 3", "__MACOSX/cat 5",
         "$RECYCLE.BIN/x 2", "cat/Thumbs.db", "dog/desktop.ini", "dog/1.png:Zone.Identifier", "dog/._1.jpg",
         ".DS_Store", ".Trash-1000/cat 3")  # fmt: skip
    splits = splits_of(settings())
    assert splits.classes == _TWO
    assert sum(splits.counts().values()) == 10
    (note,) = (note for note in splits.notes if "left out" in note)
    assert note == ("9 files and folders are left out that systems add: #recycle (1), $RECYCLE.BIN (1), "
                    "1.png:Zone.Identifier (1) and 5 more")  # fmt: skip


def test_photos_by_other_endings_are_photos(settings: Settings, tree: Tree, photo_bytes: Callable[[int], bytes]):
    """JPEG's rarer endings count, in any case and doubled; whether it is a photo, the first bytes decide."""
    folder = tree("cat 5", "dog 5")
    endings = (".jfif", ".JPE", ".jpg.jpg", ".JPG.png", ".pjpeg", ".jif", ".JPG", ".WebP")
    for number, ending in enumerate(endings):
        (folder / "cat" / f"more{ending}").write_bytes(photo_bytes(1000 + number))
    splits = splits_of(settings())
    assert sum(splits.counts().values()) == 10 + len(endings)


def test_a_folder_called_as_a_photo_is_a_folder(settings: Settings, tree: Tree):
    """A folder x.jpg is followed inside of a class, and is a class beside others."""
    tree("cat/x.jpg 3", "cat 2", "dog.png 5")
    assert splits_of(settings()).classes == ("cat", "dog.png")


def test_files_to_convert_are_counted_by_kind_with_a_command(settings: Settings, tree: Tree):
    """Phones' and cameras' other formats are counted, with the command that makes photos of them."""
    tree("cat 5", "dog 5", "cat/a.JXL", "cat/b.JXL", "dog/c.psd", "dog/d.mp4", "dog/e.CR2", "cat/f.jp2", "cat/g.txt")
    notes = splits_of(settings()).notes
    assert (
        "2 JPEG XL files are left out; to make JPEGs with ImageMagick: find . -name '*.JXL' -exec mogrify -format jpg {} +"
        in notes
    )
    for said in ("1 Photoshop file is left out; to make JPEGs", "1 video file is left out; to take single pictures: ffmpeg",
                 "1 camera RAW file is left out; to make JPEGs, export", "1 JPEG 2000 file is left out"):  # fmt: skip
        assert any(note.startswith(said) for note in notes), notes
    assert "1 file is not JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC and left out: cat/g.txt" in notes


@pytest.mark.parametrize("inside", ["cat/{}.jxl", "{}.jxl"])
def test_a_folder_of_nothing_but_files_to_convert_says_so(settings: Settings, tree: Tree, inside: str):
    """Where all files are JPEG XL, the refusal has their number and the command."""
    tree(*(inside.format(number) for number in range(12)))
    message = _refused(settings())
    assert "has no photos" in message
    assert "; 12 JPEG XL files are left out; to make JPEGs with ImageMagick" in message


def test_heic_without_its_library_names_the_extra(settings: Settings, tree: Tree, monkeypatch: pytest.MonkeyPatch):
    """A folder full of HEIC is one line with the extra that reads them, beside other photos a note."""
    monkeypatch.setattr("penult.export.data.file_index.can_read_heic", lambda: False)
    tree(*(f"{name}/{number}.heic" for name in ("cat", "dog") for number in range(6)))
    with pytest.raises(DataError, match="; 12 HEIC files are left out; to read them, in the folder of") as caught:
        splits_of(settings())
    assert "pip install '.[heic]'" in caught.value.message
    tree("cat 5", "dog 5", "dog/1.HEIC")
    assert any(note.startswith("13 HEIC files are left out; to read them") for note in splits_of(settings()).notes)


def test_photos_beside_class_folders_are_noted(settings: Settings, tree: Tree):
    """Photos in no class folder are left out, with a note."""
    tree("cat 5", "dog 5", ". 3", "notes.txt")
    notes = splits_of(settings()).notes
    assert "3 photos directly in DATA, outside the class folders, left out" in notes
    assert not any("notes.txt" in note for note in notes)


# -- classes -----------------------------------------------------------------------------------------------------------


def test_two_spellings_of_one_class_are_one(settings: Settings, tree: Tree):
    """Names that are equal after NFC are one class, in every split; files keep the paths that they have."""
    folder = tree(f"train/{_NFC} 4", f"train/{_NFD} 5", "train/other 6", f"test/{_NFD} 2", "test/other 2")
    splits = splits_of(settings())
    assert splits.classes == ("other", _NFC)
    counts = _parts(splits)
    assert (counts["train"][_NFC] + counts["val"][_NFC], counts["test"][_NFC]) == (9, 2)
    assert all(photo.path.is_file() for photo in splits.train)
    assert {photo.path.parent for photo in splits.test} == {folder / "test" / _NFD, folder / "test" / "other"}
    (note,) = (note for note in splits.notes if "Unicode" in note)
    assert note.endswith(_NFC)


def test_classes_that_differ_in_capitals_are_noted(settings: Settings, tree: Tree):
    """Cat beside cat are two classes, and a note asks nobody to wonder why."""
    tree("Cat 5", "cat 5", "dog 5")
    splits = splits_of(settings())
    assert splits.classes == ("Cat", "cat", "dog")
    assert "2 classes differ only in upper and lower case: Cat, cat" in splits.notes


# -- all problems at once ----------------------------------------------------------------------------------------------


def test_all_problems_are_in_one_line(settings: Settings, tree: Tree):
    """Too few photos, broken ones, unknown classes, unprintable names, files to convert and a wrong option come together."""
    folder = tree("train/ant 2", "train/bee 0", "train/cat 9", "train/dog 4", "train/eel\n 5", "test/cat 2", "test/dgo 1",
                  *(f"train/bee/{number}.jxl" for number in range(12)))  # fmt: skip
    for path in sorted((folder / "train" / "dog").iterdir())[:3]:
        path.write_bytes(b"no photo")
    message = _refused(settings(val="2"))
    for said in ("--val 2 must be above 0 and below 1", "unprintable name: 'eel\\n'", "'dgo' (did you mean 'dog'?)",
                 "3 classes have too few photos: 'ant' has 2 readable photos, 'bee' has 0 readable photos, 'dog' has 1",
                 "3 that cannot be read, train/dog/", "12 JPEG XL files are left out; to make JPEGs"):  # fmt: skip
        assert said in message, message


def test_many_problems_of_a_kind_are_three_and_a_number(settings: Settings, tree: Tree):
    """However many classes have too few photos, three are named and the others counted."""
    tree(*(f"class{number} 1" for number in range(40)))
    message = _refused(settings())
    assert "40 classes have too few photos: 'class0' has 1" in message
    assert " and 37 more; at least 4 are needed" in message
    assert len(message) < 400


def test_a_large_folder_is_refused_by_its_names(settings: Settings, tree: Tree, monkeypatch: pytest.MonkeyPatch):
    """Above some hundred photos none is read before names are right: that would take minutes."""
    monkeypatch.setattr("penult.export.data.file_index.check", lambda listing: pytest.fail("it read photos"))
    folder = tree("train/cat 1", "train/dog 3", "test/cow 1")
    for number in range(600):
        (folder / "train" / "cat" / f"{number}.jpg").symlink_to("001.png")
    message = _refused(settings())
    assert "'cow'" in message
    assert "test has no photos" not in message
    assert "class 'dog' has 3 photos; at least 4 are needed" in message


def test_a_wrong_folder_is_refused_before_pytorch_is_there(run_python: Callable, tree: Tree, tmp_path: Path):
    """A folder is refused by its names before what takes seconds is imported; test_preflight.py asks svm and quantize."""
    argv = ["train", str(tree("cat 9", "dog 1")), "--out", str(tmp_path / "models" / "pets")]
    code = (
        f"import sys; from penult import cli; code = cli.main({argv!r})\n"
        "print(code, [m for m in ('torch', 'torchvision', 'sklearn', 'onnxruntime', 'matplotlib') if m in sys.modules])"
    )
    result = run_python("-c", code)
    assert result.stdout == "1 []\n", result
    assert result.stderr == "penult: class 'dog' has 1 readable photos; at least 4 are needed, some tens are better\n"


@pytest.mark.parametrize(("part", "other"), [("test", "val"), ("val", "test")])
def test_a_folder_that_an_option_names_is_that_split_alone(part, other, tree: Tree, settings: Settings):
    """With --test DATA/val nothing is validated on the test photos: validation photos are drawn from the others."""
    data = tree("train/cat 8", "train/dog 8", f"{other}/cat 4", f"{other}/dog 4")
    splits = splits_of(settings(data=data, **{part: str(data / other)}))
    assert _parts(splits) == {"train": {"cat": 7, "dog": 7}, part: {"cat": 4, "dog": 4}, other: {"cat": 1, "dog": 1}}
    assert f"{other}/ is used as the {part} split, because of --{part}, and not as {other}" in splits.notes
    assert splits.copies == ()


def test_two_options_cannot_name_the_same_photos(tree: Tree, settings: Settings):
    """One folder for both splits, or one inside of the other, is refused."""
    data = tree("train/cat 8", "train/dog 8", "more/cat 4", "more/dog 4", "more/deep/cat 4", "more/deep/dog 4")
    for val, test in (("more", "more"), ("more", "more/deep"), ("more/deep", "more")):
        line = _refused(settings(data=data, val=str(data / val), test=str(data / test)))
        assert "has photos of the val split too; give each split its own folder" in line


def test_a_fraction_beside_a_folder_is_said_to_be_idle(tree: Tree, settings: Settings):
    """--val 0.3 does nothing if DATA has a folder of validation photos, and a note says so."""
    data = tree("train/cat 8", "train/dog 8", "valid/cat 4", "valid/dog 4")
    splits = splits_of(settings(data=data, val="0.3"))
    assert "--val 0.3 is not used: the val split is valid/" in splits.notes
    assert not any("not used" in note for note in splits_of(settings(data=data)).notes)
