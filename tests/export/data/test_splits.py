"""Splits: given or drawn, by class, the same every time, and without a photo in two of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.export.splits import splits_of

from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.errors import DataError

Settings = Callable[..., TrainSettings]
Photos = Callable[..., Path]
_PARTS = ("train", "val", "test")


def _paths(splits: Splits, part: str) -> set[Path]:
    return {photo.path for photo in getattr(splits, part)}


@pytest.fixture
def folder(make_photos: Photos, tmp_path: Path) -> Path:
    """Forty cats, twenty dogs, seven eels, without a split."""
    return make_photos(tmp_path / "photos", {"cat": 40, "dog": 20, "eel": 7})


def test_a_drawn_split_is_stratified(settings: Settings, folder: Path):
    """Each class gives its share to each part: 20 % to the test, 25 % of the rest to validation, at least one."""
    splits = splits_of(settings(test="0.2", val="0.25"))
    counts = {part: Counter(splits.classes[photo.label] for photo in getattr(splits, part)) for part in _PARTS}
    assert counts["test"] == {"cat": 8, "dog": 4, "eel": 1}
    assert counts["val"] == {"cat": 8, "dog": 4, "eel": 2}
    assert counts["train"] == {"cat": 24, "dog": 12, "eel": 4}
    assert splits.counts() == {"train": 40, "val": 14, "test": 13}


def test_the_smallest_fraction_takes_one_of_each(settings: Settings, folder: Path):
    """However small the fraction, every class is validated and tested."""
    splits = splits_of(settings(test="0.001", val="0.001"))
    assert splits.counts() == {"train": 61, "val": 3, "test": 3}
    assert {photo.label for photo in splits.val} == {photo.label for photo in splits.test} == {0, 1, 2}


def test_parts_are_disjoint_and_whole(settings: Settings, folder: Path):
    """Every photo is in exactly one part, under its own class, with the digest of its bytes."""
    splits = splits_of(settings())
    assert sum(len(_paths(splits, part)) for part in _PARTS) == 67
    assert set.union(*(_paths(splits, part) for part in _PARTS)) == set(folder.glob("*/*.png"))
    for part in _PARTS:
        for photo in getattr(splits, part):
            assert splits.classes[photo.label] == photo.path.parent.name
            assert len(photo.sha256) == 64


def test_a_split_is_repeatable(settings: Settings, folder: Path):
    """The same seed draws the same split in the same order, another one another."""
    first, again, other = (splits_of(settings(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert _paths(first, "test") != _paths(other, "test")
    assert _paths(first, "val") != _paths(other, "val")


def test_file_names_do_not_decide_the_split(settings: Settings, folder: Path, tmp_path: Path):
    """Renamed photos stay in their parts: only contents and seed decide."""
    before = splits_of(settings())
    for number, path in enumerate(sorted(folder.glob("*/*.png"), reverse=True)):
        path.rename(path.parent / f"x{number}.png")
    after = splits_of(settings())
    for part in _PARTS:
        assert {photo.sha256 for photo in getattr(before, part)} == {photo.sha256 for photo in getattr(after, part)}


def test_a_new_test_photo_leaves_other_classes_split_as_they_were(
    settings: Settings, folder: Path, photo_bytes: Callable[[int], bytes]
):
    """Each class is drawn for itself, so that a photo more of one does not shuffle the others."""
    before = splits_of(settings())
    (folder / "cat" / "new.png").write_bytes(photo_bytes(999_999))
    after = splits_of(settings())
    for part in _PARTS:
        dogs = [{photo.path for photo in getattr(splits, part) if photo.label == 1} for splits in (before, after)]
        assert dogs[0] == dogs[1]


def test_more_photos_leave_learnt_ones_where_they_were(
    settings: Settings, folder: Path, photo_bytes: Callable[[int], bytes]
):
    """With a tenth more photos, hardly one that was learnt from is validated or tested with, whatever the seed."""
    before = [splits_of(settings(seed=seed)) for seed in range(10)]
    for number in range(4):
        (folder / "cat" / f"new{number}.png").write_bytes(photo_bytes(999_000 + number))
    after = [splits_of(settings(seed=seed)) for seed in range(10)]
    moved = [len(_paths(old, "train") - _paths(new, "train")) for old, new in zip(before, after, strict=True)]
    # Each part grows by one photo at most, and what it takes may have been learnt from.
    assert max(moved) <= 2
    grown = [len(_paths(new, "train")) for new in after]
    assert len(set(grown)) == 1


def test_another_class_leaves_the_others_split_as_they_were(settings: Settings, folder: Path, make_photos: Photos):
    """A class whose name comes first moves every label and not one photo."""
    before = splits_of(settings())
    make_photos(folder, {"ant": 10}, seed=7)
    after = splits_of(settings())
    assert after.classes[0] == "ant"
    for part in _PARTS:
        assert {path for path in _paths(after, part) if path.parent.name != "ant"} == _paths(before, part)


def test_given_folders_are_used_as_they_are(settings: Settings, make_photos: Photos, tmp_path: Path):
    """DATA/train, DATA/val and DATA/test are the parts, nothing is drawn, and fractions are said to be idle."""
    for seed, (part, count) in enumerate(zip(_PARTS, (9, 3, 2), strict=True)):
        make_photos(tmp_path / "photos" / part, {"cat": count, "dog": count}, seed)
    splits = splits_of(settings(val="0.5", test="0.5"))
    assert splits.counts() == {"train": 18, "val": 6, "test": 4}
    for part in _PARTS:
        assert all(tmp_path / "photos" / part in path.parents for path in _paths(splits, part))
    assert splits.notes == (
        "--test 0.5 is not used: the test split is test/",
        "--val 0.5 is not used: the val split is val/",
    )


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_folder_option_wins(settings: Settings, make_photos: Photos, tmp_path: Path, part: str):
    """--val DIR and --test DIR replace DATA's own folders, and serve a DATA without any."""
    other = make_photos(tmp_path / "other", {"cat": 3, "dog": 1}, seed=5)
    make_photos(tmp_path / "photos" / "train", {"cat": 9, "dog": 9})
    make_photos(tmp_path / "photos" / part, {"cat": 2, "dog": 2}, seed=1)
    flat = make_photos(tmp_path / "flat", {"cat": 9, "dog": 9})
    for data in (tmp_path / "photos", flat):
        splits = splits_of(settings(data=data, **{part: str(other)}))
        assert _paths(splits, part) == set(other.glob("*/*.png"))


def test_a_split_may_lack_a_class(settings: Settings, make_photos: Photos, tmp_path: Path):
    """Labels keep their meaning where test/ has fewer classes than train/."""
    make_photos(tmp_path / "photos" / "train", {"cat": 5, "dog": 5, "eel": 5})
    make_photos(tmp_path / "photos" / "test", {"eel": 2}, seed=1)
    splits = splits_of(settings())
    assert [splits.classes[photo.label] for photo in splits.test] == ["eel", "eel"]
    assert "2 classes have no test photo, so they are not measured: cat, dog" in splits.notes


@pytest.mark.parametrize("option", ["0", "1", "-0.1", "1.5", "nan", "inf", "absent/folder", ""])
@pytest.mark.parametrize("part", ["val", "test"])
def test_an_option_that_is_neither_is_refused(settings: Settings, folder: Path, part: str, option: str):
    """Neither a folder nor a fraction between 0 and 1 is refused, naming the option."""
    with pytest.raises(DataError) as caught:
        splits_of(settings(**{part: option}))
    assert caught.value.reason == "DATA_SPLIT"
    assert f"--{part}" in caught.value.message


def test_what_was_drawn_is_noted(settings: Settings, folder: Path):
    """The notes say how many photos were set aside for each part, and by which seed."""
    splits = splits_of(settings(seed=3))
    for part in ("val", "test"):
        wanted = f"{part} split: {len(getattr(splits, part))} photos set aside at random (seed 3), as DATA names none"
        assert wanted in splits.notes


def test_copies_in_two_parts_are_noted(settings: Settings, make_photos: Photos, tmp_path: Path):
    """Photos that stand byte for byte in training and test are counted, whatever they are called."""
    train = make_photos(tmp_path / "photos" / "train", {"cat": 9, "dog": 9})
    test = make_photos(tmp_path / "photos" / "test", {"cat": 2, "dog": 2}, seed=1)
    (test / "cat" / "copy.png").write_bytes((train / "cat" / "000.png").read_bytes())
    (test / "dog" / "other.png").write_bytes((train / "cat" / "001.png").read_bytes())
    (train / "cat" / "twin.png").write_bytes((train / "cat" / "002.png").read_bytes())
    splits = splits_of(settings(val=str(make_photos(tmp_path / "val", {"cat": 2, "dog": 2}, seed=2))))
    assert list(splits.notes) == [
        "2 photos are in more than one split, byte for byte; remove the copies: "
        "test/cat/copy.png = train/cat/000.png, test/dog/other.png = train/cat/001.png",
        "1 photos have more than one label; keep the file with the correct label: test/dog/other.png = train/cat/001.png",
        "1 photos are copies of another one in the same split and class; each of them counts",
    ]
    assert splits.copies == (("test/cat/copy.png", "train/cat/000.png"), ("test/dog/other.png", "train/cat/001.png"))


def test_copies_stay_together_when_a_split_is_drawn(settings: Settings, folder: Path):
    """Copies of one photo in one class all go to the same part, whichever the seed; shares stay as they were."""
    for path in sorted(folder.glob("cat/*.png"))[:10]:
        for copy in range(3):
            (folder / "cat" / f"copy{copy}_{path.name}").write_bytes(path.read_bytes())
    for seed in range(10):
        splits = splits_of(settings(seed=seed, test="0.2", val="0.25"))
        parts = [{photo.sha256 for photo in getattr(splits, part)} for part in _PARTS]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 67
        cats = Counter(part for part in _PARTS for photo in getattr(splits, part) if photo.label == 0)
        assert sum(cats.values()) == 70
        assert 11 <= cats["test"] <= 14
        assert 11 <= cats["val"] <= 14


def test_photos_with_two_labels_are_never_set_aside(settings: Settings, folder: Path):
    """A photo that is a cat and a dog stays in training, whichever the seed; nobody could be right about it."""
    for path in sorted(folder.glob("cat/*.png"))[:5]:
        (folder / "dog" / f"also_{path.name}").write_bytes(path.read_bytes())
    for seed in range(10):
        splits = splits_of(settings(seed=seed))
        labels = {part: {(photo.sha256, photo.label) for photo in getattr(splits, part)} for part in _PARTS}
        both = {digest for digest, label in labels["train"] if label == 0} & {d for d, n in labels["train"] if n == 1}
        assert len(both) == 5
        assert not any("more than one split" in note for note in splits.notes)
        (note,) = (note for note in splits.notes if "more than one label" in note)
        assert note.startswith(
            "5 photos have more than one label; keep the file with the correct label: cat/000.png = "
        )
        assert note.endswith(" and 2 more")
        assert len(splits.copies) == 5


def test_one_photo_copied_many_times_is_one_photo(settings: Settings, folder: Path, tmp_path: Path):
    """A class is too small if its files are few photos, over and over, or if another class has them all."""
    for number in range(1, 7):
        data = (folder / "eel" / f"{number % 3:03d}.png").read_bytes()
        (folder / "eel" / f"{number:03d}.png").write_bytes(data)
    with pytest.raises(DataError, match="'eel' has 7 readable photos, only 3 different ones of its own") as caught:
        splits_of(settings())
    assert caught.value.reason == "DATA_FEW"


@pytest.mark.parametrize("copies", [2, 5, 12])
def test_a_photo_copied_more_often_than_a_share_is_large_does_not_empty_a_part(
    settings: Settings, make_photos: Photos, tmp_path: Path, copies: int
):
    """Four photos with many copies each still give one photo to each part, and two to learn from."""
    folder = make_photos(tmp_path / "photos", {"cat": 4, "dog": 4})
    for path in sorted(folder.glob("*/*.png")):
        for copy in range(copies):
            (path.parent / f"copy{copy}_{path.name}").write_bytes(path.read_bytes())
    splits = splits_of(settings(val="0.5", test="0.5"))
    for part, least in (("train", 2), ("val", 1), ("test", 1)):
        for label in (0, 1):
            assert len({photo.sha256 for photo in getattr(splits, part) if photo.label == label}) == least
    assert sum(splits.counts().values()) == 8 * (copies + 1)


def test_names_of_files_do_not_show_where_they_lie(settings: Settings, make_photos: Photos, tmp_path: Path):
    """What is left out, or doubled, is named without this machine's folders and in printable letters."""
    train = make_photos(tmp_path / "photos" / "train", {"cat": 9, "dog": 9})
    test = make_photos(tmp_path / "mine" / "other", {"cat": 2, "dog": 2}, seed=1)
    (test / "cat" / "copy\x1b[31m.png").write_bytes((train / "cat" / "000.png").read_bytes())
    (test / "cat" / "bad\n.png").write_bytes(b"no photo")
    splits = splits_of(settings(test=str(test)))
    assert splits.left_out == ((r"other/cat/bad\n.png", "IMAGE_UNKNOWN_FORMAT"),)
    assert splits.copies[0][0] == r"other/cat/copy\x1b[31m.png"
    assert all(note.isprintable() and str(tmp_path) not in note for note in splits.notes)


def test_the_hash_changes_with_content_class_and_split(photo_bytes: Callable[[int], bytes]):
    """The data hash tells apart other contents, labels and parts, and nothing else, such as order or names."""
    a, b, c = (Photo(Path(name), label, name * 64) for name, label in (("a", 0), ("b", 1), ("c", 0)))
    base = Splits(("cat", "dog"), (a, b), (c,), (), ())
    same = Splits(("cat", "dog"), (b, Photo(Path("z"), 0, "a" * 64)), (c,), (), ("a note",))
    assert base.sha256 == same.sha256
    others = [
        Splits(("cat", "dog"), (a, Photo(Path("b"), 0, "b" * 64)), (c,), (), ()),
        Splits(("cat", "dog"), (a, Photo(Path("b"), 1, "d" * 64)), (c,), (), ()),
        Splits(("cat", "dog"), (a, b), (), (c,), ()),
        Splits(("cat", "dog"), (a, b, c), (), (), ()),
        Splits(("cat", "cow"), (a, b), (c,), (), ()),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 6


def test_the_hash_changes_with_a_photo(settings: Settings, folder: Path, photo_bytes: Callable[[int], bytes]):
    """One photo with other bytes makes another data set; touching a file does not."""
    before = splits_of(settings()).sha256
    (folder / "cat" / "000.png").touch()
    assert splits_of(settings()).sha256 == before
    (folder / "cat" / "000.png").write_bytes(photo_bytes(424_242))
    assert splits_of(settings()).sha256 != before
