"""Folders of photos: what is found, what is left out and said, and what stops a run with one line."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.case import encode, picture
from tests.attacks.heifs import heic
from tests.export.splits import splits_of

from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.outliers import load_outliers
from penult.export.errors import DataError

Settings = Callable[..., TrainSettings]
Photos = Callable[..., Path]


def _refused(settings: TrainSettings) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        splits_of(settings)
    assert caught.value.message.isprintable()
    caught.value.message.encode()
    return caught.value.reason, caught.value.message


def _names(photos: Any) -> set[str]:
    return {f"{photo.path.parent.name}/{photo.path.name}" for photo in photos}


def _all(splits: Splits) -> list[Any]:
    return [*splits.train, *splits.val, *splits.test]


# -- folders that cannot be learnt from --------------------------------------------------------------------------------


def test_a_missing_folder_is_said_so(settings: Settings, tmp_path: Path):
    """A folder that is not there, or a file in its place, is named."""
    assert _refused(settings())[0] == "DATA_MISSING"
    (tmp_path / "photos").write_bytes(b"")
    reason, message = _refused(settings())
    assert (reason, str(tmp_path / "photos") in message) == ("DATA_MISSING", True)


@pytest.mark.parametrize("inside", [[], ["cat"], ["cat", "dog"], ["train"], ["train/cat", "train/dog"]])
def test_a_folder_without_photos_is_said_so(settings: Settings, tmp_path: Path, inside: list[str]):
    """Nothing at all, and class folders without photos, are refused as empty."""
    for name in inside or [""]:
        (tmp_path / "photos" / name).mkdir(parents=True)
    assert _refused(settings())[0] == "DATA_EMPTY"


def test_photos_without_class_folders_are_said_to_be_none(settings: Settings, tmp_path: Path, photo_bytes: Callable):
    """Photos that lie in no class folder have no label."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(photo_bytes(1))
    reason, message = _refused(settings())
    assert (reason, "has 1 photo and no class folders" in message) == ("DATA_FLAT", True)


def test_one_class_is_split_too(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A folder with one class folder is a data set of one class, with photos set aside."""
    make_photos(tmp_path / "photos", {"cat": 20})
    found = splits_of(settings())
    assert (found.classes, found.counts()) == (("cat",), {"train": 14, "val": 3, "test": 3})


def test_a_class_of_several_is_no_class_of_one(settings: Settings, make_photos: Photos, tmp_path: Path):
    """One level too deep: a folder beside DATA has folders of the same name, so DATA is a class itself."""
    make_photos(tmp_path / "animals" / "cat", {"2024": 9})
    make_photos(tmp_path / "animals" / "dog", {"2024": 9}, seed=1)
    reason, message = _refused(settings(data=tmp_path / "animals" / "cat"))
    assert reason == "DATA_ONE_CLASS"
    assert message == f"only one class ('2024') was found; did you mean {tmp_path / 'animals'}?"


def test_other_photos_in_test_are_outliers_if_they_are_given_so(
    settings: Settings, make_photos: Photos, tmp_path: Path
):
    """MVTec's layout: test/ has folders without training photos, which the message calls outliers."""
    make_photos(tmp_path / "photos" / "train", {"good": 9})
    test = make_photos(tmp_path / "photos" / "test", {"good": 3, "scratch": 2}, seed=1)
    reason, message = _refused(settings())
    assert reason == "DATA_CLASSES"
    assert message.endswith(f"'scratch'; add or remove them, or give others than 'good' as --outliers {test}")
    found = splits_of(settings(outliers=test))
    assert (found.classes, found.counts()["test"]) == (("good",), 3)
    photos, notes = load_outliers(test, "good")
    assert sorted(photo.path.parent.name for photo in photos) == ["scratch", "scratch"]
    assert notes == ("3 photos of 'good' in --outliers are left out",)


def test_a_class_with_too_few_photos_is_named(settings: Settings, make_photos: Photos, tmp_path: Path):
    """Three photos of a class are too few, four will do."""
    make_photos(tmp_path / "photos", {"cat": 20, "dog": 3})
    reason, message = _refused(settings())
    assert reason == "DATA_FEW"
    assert "'dog' has 3" in message
    make_photos(tmp_path / "more", {"cat": 20, "dog": 4})
    assert splits_of(settings(data=tmp_path / "more")).classes == ("cat", "dog")


def test_unreadable_photos_do_not_count_as_photos(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A class whose photos are all broken is too small, however many files it has."""
    folder = make_photos(tmp_path / "photos", {"cat": 20, "dog": 20})
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"no photo")
    reason, message = _refused(settings())
    assert reason == "DATA_FEW"
    assert "0 readable photos and 20 that cannot be read, dog/000.png (IMAGE_UNKNOWN_FORMAT)" in message


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_split_of_broken_photos_is_refused(settings: Settings, make_photos: Photos, tmp_path: Path, part: str):
    """A val/ or test/ folder in which no photo can be read stops the run at once, not hours later."""
    make_photos(tmp_path / "photos" / "train", {"cat": 10, "dog": 10})
    broken = make_photos(tmp_path / "photos" / part, {"cat": 2}, seed=1)
    for path in (broken / "cat").iterdir():
        path.write_bytes(b"no photo")
    reason, message = _refused(settings())
    assert reason == "DATA_EMPTY"
    assert f"photos/{part} can be read" in message
    assert f"{part}/cat/000.png (IMAGE_UNKNOWN_FORMAT)" in message


@pytest.mark.parametrize(
    ("val", "test"), [("0.9", "0.15"), ("0.15", "0.9"), ("0.5", "0.5"), ("0.99", "0.99"), ("0.4", "0.4")]
)
def test_large_fractions_leave_photos_to_learn_from(
    settings: Settings, make_photos: Photos, tmp_path: Path, val: str, test: str
):
    """Whatever is set aside, two photos of each class remain for training and one for each split, or it is refused."""
    make_photos(tmp_path / "photos", {"cat": 4, "dog": 6})
    try:
        splits = splits_of(settings(val=val, test=test))
    except DataError as error:
        assert error.reason in ("DATA_FEW", "DATA_SPLIT")
        return
    for part, least in (("train", 2), ("val", 1), ("test", 1)):
        for label in (0, 1):
            assert sum(photo.label == label for photo in getattr(splits, part)) >= least, part


@pytest.mark.parametrize("option", ["out", "val", "test"])
def test_a_folder_among_the_classes_is_refused(settings: Settings, make_photos: Photos, tmp_path: Path, option: str):
    """A model or a split below DATA would be a class of the next run; beside train/ they do no harm."""
    make_photos(tmp_path / "photos", {"cat": 9, "dog": 9})
    inside = tmp_path / "photos" / "models" / "pets"
    inside.mkdir(parents=True)
    reason, message = _refused(settings(**{option: inside if option == "out" else str(inside)}))
    assert (reason, f"--{option} " in message) == ("DATA_INSIDE", True)
    make_photos(tmp_path / "laid" / "train", {"cat": 9, "dog": 9})
    make_photos(tmp_path / "laid" / "val", {"cat": 2, "dog": 2}, seed=1)
    laid = settings(data=tmp_path / "laid", out=tmp_path / "laid" / "models" / "pets")
    assert splits_of(laid).classes == ("cat", "dog")


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two words", "größe", "猫", "e\u0301te\u0301", "🐱", "a'b\"c", "50% <b>&$x$", "-", "{{x}}",
                                  "می\u200cخواهم", "👩\u200d🚀"])  # fmt: skip
def test_class_names_may_be_in_any_language(settings: Settings, make_photos: Photos, tmp_path: Path, name: str):
    """Spaces, any script, emoji and punctuation name a class; accents are in one Unicode form, NFC."""
    make_photos(tmp_path / "photos", {name: 5, "other": 5})
    assert set(splits_of(settings()).classes) == {unicodedata.normalize("NFC", name), "other"}


@pytest.mark.parametrize(
    "name", ["a\nb", "a\tb", "\x1b[31mred", "a\x7f", "\u202egnp", " a", "a ", os.fsdecode(b"\xff\xfe")]
)
def test_class_names_that_cannot_be_shown_are_refused(
    settings: Settings, make_photos: Photos, tmp_path: Path, name: str
):
    """Line breaks, control characters, outer spaces and bytes that are no UTF-8 are refused, in one printable line."""
    make_photos(tmp_path / "photos", {name: 5, "other": 5})
    assert _refused(settings())[0] == "DATA_CLASS_NAME"


def test_an_unknown_class_in_a_split_is_named(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A class in test/ that train/ lacks is refused, since it could never be answered right."""
    make_photos(tmp_path / "photos" / "train", {"cat": 5, "dog": 5})
    make_photos(tmp_path / "photos" / "test", {"cat": 2, "cow": 2}, seed=1)
    reason, message = _refused(settings())
    assert reason == "DATA_CLASSES"
    assert "'cow'" in message


# -- what is left out ----------------------------------------------------------------------------------------------------


def test_unreadable_photos_are_counted_and_named(settings: Settings, make_photos: Photos, tmp_path: Path):
    """Broken photos are left out; the note has their number, the first three names, and why."""
    folder = make_photos(tmp_path / "photos", {"cat": 10, "dog": 10})
    for number, data in enumerate((b"", b"text", (folder / "cat" / "009.png").read_bytes()[:60], b"x", b"y")):
        (folder / "dog" / f"broken{number}.jpg").write_bytes(data)
    splits = splits_of(settings())
    assert len(_all(splits)) == 20
    (note,) = (note for note in splits.notes if "cannot be read" in note)
    assert note == (
        "5 photos cannot be read and are left out; restore or remove them: dog/broken0.jpg (IMAGE_EMPTY), "
        "dog/broken1.jpg (IMAGE_UNKNOWN_FORMAT), dog/broken2.jpg (IMAGE_TRUNCATED) and 2 more"
    )
    assert [name for name, _ in splits.left_out] == [f"dog/broken{number}.jpg" for number in range(5)]
    assert dict(splits.left_out)["dog/broken4.jpg"] == "IMAGE_UNKNOWN_FORMAT"


def test_a_link_to_nowhere_is_an_unreadable_photo(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A photo that cannot be opened is noted like one that cannot be decoded."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5})
    (folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert any("gone.jpg (No such file or directory)" in note for note in splits_of(settings()).notes)


def test_a_photo_whose_name_is_no_text_is_used_and_can_be_named(
    settings: Settings, make_photos: Photos, tmp_path: Path, photo_bytes: Callable
):
    """File names that are not UTF-8 do no harm; where they must be shown, they are spelt out."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5})
    Path(os.fsdecode(bytes(folder) + b"/cat/\xff.png")).write_bytes(photo_bytes(99))
    Path(os.fsdecode(bytes(folder) + b"/cat/\xfe.png")).write_bytes(b"broken")
    splits = splits_of(settings())
    assert len(_all(splits)) == 11
    "".join(splits.notes).encode()


def test_a_folder_that_holds_itself_is_noted(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A link back to a folder above it is named and not followed."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5})
    (folder / "cat" / "loop").symlink_to(folder / "cat")
    splits = splits_of(settings())
    said = "cat/loop (a link back to a folder that holds it)"
    assert f"1 folder is left out that cannot be entered: {said}" in splits.notes
    assert splits.left_out == (("cat/loop", "a link back to a folder that holds it"),)
    assert len(_all(splits)) == 10


def test_a_class_may_be_a_link(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A class folder that is a link to another place is a class like any other."""
    make_photos(tmp_path / "photos", {"cat": 5})
    (tmp_path / "photos" / "dog").symlink_to(make_photos(tmp_path / "store", {"beagle": 5}, seed=1) / "beagle")
    assert splits_of(settings()).classes == ("cat", "dog")


def test_hidden_files_and_folders_are_ignored(settings: Settings, make_photos: Photos, tmp_path: Path):
    """What begins with a dot is neither a class nor a photo, and not worth a note."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5, ".ipynb_checkpoints": 5})
    make_photos(folder / "cat", {".thumbnails": 5}, seed=1)
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "._000.png").write_bytes(b"x")
    splits = splits_of(settings())
    assert splits.classes == ("cat", "dog")
    assert len(_all(splits)) == 10
    assert not any("left out" in note for note in splits.notes)


def test_other_files_are_counted_and_named(settings: Settings, make_photos: Photos, tmp_path: Path):
    """Files that are no photos by their names are left out with a note; files beside the classes are none of ours."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5})
    (folder / "README.md").write_bytes(b"x")
    for name in ("a.txt", "b.csv", "c", "d.xml"):
        (folder / "cat" / name).write_bytes(b"x")
    (note,) = (note for note in splits_of(settings()).notes if "JPEG" in note)
    assert (
        note
        == "4 files are not JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC and left out: cat/a.txt, cat/b.csv, cat/c and 1 more"
    )


def test_every_format_is_learned_from(settings: Settings, make_photos: Photos, tmp_path: Path):
    """A folder of all formats has no note; the ending does not decide which one a file is."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5})
    (folder / "cat" / "1.HEIC").write_bytes(heic())
    (folder / "cat" / "2.jpg").write_bytes(heic() + bytes(9))
    for number, (kind, ending) in enumerate((("AVIF", "avif"), ("TIFF", "TIF"), ("BMP", "bmp"), ("GIF", "gif"))):
        (folder / "dog" / f"3.{ending}").write_bytes(encode(picture().rotate(90 * number), kind))
    splits = splits_of(settings())
    assert len(_all(splits)) == 16
    assert not any("left out" in note for note in splits.notes), splits.notes


def test_photos_below_a_class_belong_to_it(
    settings: Settings, make_photos: Photos, tmp_path: Path, photo_bytes: Callable
):
    """Folders inside a class folder are followed, and suffixes may be in capitals."""
    folder = make_photos(tmp_path / "photos", {"cat": 5, "dog": 5})
    (folder / "cat" / "2024" / "may").mkdir(parents=True)
    (folder / "cat" / "2024" / "may" / "IMG.PNG").write_bytes(photo_bytes(99))
    (found,) = (photo for photo in _all(splits_of(settings())) if photo.path.name == "IMG.PNG")
    assert found.label == 0
