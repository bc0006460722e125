"""Labels from other files, and to Label Studio and back, come out as they went in."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penult.export.config.photos import PhotoSource
from penult.export.data.label_file import read_label_file
from penult.label.errors import LabelFileError
from penult.label.exchange import (
    import_labels,
    label_studio_config,
    label_studio_tasks,
    read_labels,
    rows_for_training,
)
from penult.label.labels_file import Label, LabelsFile

IDS = ("cats/a 1.jpg", "cats/b%41.jpg", "dogs/a 1.jpg", "dogs/ü+&.jpg", "c,d.jpg", "e.jpg")
LABELS = {"cats/a 1.jpg": "cat", "cats/b%41.jpg": "cat", "dogs/a 1.jpg": "big dog", "dogs/ü+&.jpg": "hünd <x>"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the images."""
    for image in IDS:
        (tmp_path / "photos" / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / image).write_bytes(image.encode())
    return tmp_path / "photos"


@pytest.fixture
def file(root: Path) -> Iterator[LabelsFile]:
    """An empty label file beside it."""
    file = LabelsFile(root.parent / "labels.csv", root)
    yield file
    file.close()


def written(kind: str, root: Path) -> Path:
    """The labels as another tool's file, beside the folder, or in it if paths start from there."""
    path = root.parent / f"export.{kind.partition(' ')[0]}"
    rows = list(LABELS.items())
    match kind:
        case "csv from the folder":
            path.write_text("".join(f'"{image}",{label}\n' for image, label in [("image", "label"), *rows]))
        case "csv from the file":
            lines = [("image", "label"), *((f"{root.name}/{image}", label) for image, label in rows)]
            path.write_text("".join(f'"{image}",{label}\n' for image, label in lines))
        case "tsv windows":
            text = "".join(f"{image}\t{label}\r\n" for image, label in [("image", "label"), *rows])
            path.write_bytes(b"\xef\xbb\xbf" + text.replace("/", "\\").encode())
        case "parquet":
            pq.write_table(pa.table({"image": list(LABELS), "label": list(LABELS.values())}), path)
        case "json min":
            path.write_text(json.dumps([{"image": f"/data/local-files/?d=my/photos/{i.replace('%', '%25').replace('+', '%2B').replace('&', '%26')}",
                                         "choice": label} for i, label in rows]))  # fmt: skip
        case "json urls":
            tasks = [{"data": {"image": f"s3://bucket/photos/{image}"},
                      "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}]}
                     for image, label in rows]  # fmt: skip
            path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize(
    "kind", ["csv from the folder", "csv from the file", "tsv windows", "parquet", "json min", "json urls"]
)
def test_labels_of_other_files_are_found(root: Path, kind: str):
    """Whatever penult train reads, and addresses of an export whose ends name one image."""
    found = read_labels(written(kind, root), root, IDS)
    assert found.labels == LABELS
    assert (found.missing, found.ambiguous) == ([], [])


def test_an_import_adds_and_overwrites_nothing(root: Path, file: LabelsFile):
    """Images with a label keep it; what was not added is named."""
    file.put([Label("cats/a 1.jpg", "dog", "random"), Label("e.jpg", "cat")])
    path = root.parent / "other.csv"
    path.write_text('image,label\ncats/a 1.jpg,cat\nc.jpg,cat\n"c,d.jpg",dog\ne.jpg,cat\n')
    assert import_labels(file, path, root, IDS) == [
        "1 labels of other.csv were added",
        "1 images of other.csv have another label in the label file, which stays: cats/a 1.jpg",
        "1 images of other.csv are not in the folder: c.jpg",
    ]
    assert {image: label.label for image, label in file.labels.items()} == {
        "cats/a 1.jpg": "dog", "e.jpg": "cat", "c,d.jpg": "dog",
    }  # fmt: skip
    assert file.labels["cats/a 1.jpg"].picked == "random"


def test_an_upload_whose_name_two_images_have_is_not_guessed(root: Path):
    """An export without folders names neither."""
    path = root.parent / "export.json"
    path.write_text(json.dumps([{"image": "/data/upload/3/0a1b2c3d-a 1.jpg", "choice": "cat"}]))
    found = read_labels(path, root, IDS)
    assert (found.labels, found.ambiguous) == ({}, ["data/upload/3/0a1b2c3d-a 1.jpg"])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("x.txt", "image,label\n", "no label file"),
        ("gone.csv", None, "no label file"),
        ("x.csv", "image,label\ne.jpg,cat\n./e.jpg,dog\n", "row 3: ./e.jpg has two labels, 'cat' and 'dog'"),
        ("x.json", "{}", "is no export of Label Studio"),
    ],
)
def test_an_import_that_cannot_be_used_is_one_line(root: Path, name: str, text: str | None, why: str):
    """The file is named, and what to do."""
    if text is not None:
        (root.parent / name).write_text(text)
    with pytest.raises(LabelFileError, match=why):
        read_labels(root.parent / name, root, IDS)


def test_tasks_for_label_studio_are_read_back_as_they_were(root: Path, file: LabelsFile):
    """Labels are annotations, guesses predictions with scores; penult train and --import read the same labels."""
    file.put([Label(image, label) for image, label in LABELS.items()])
    guesses = {"e.jpg": ("cat", 0.75), "cats/a 1.jpg": ("big dog", 0.5)}
    path = root.parent / "tasks.json"
    path.write_bytes(label_studio_tasks(file, root, IDS, guesses, "pets 3"))
    tasks = json.loads(path.read_bytes())
    assert [len(task.get("annotations", [])) for task in tasks] == [1, 1, 1, 1, 0, 0]
    (prediction,) = [each for task in tasks for each in task.get("predictions", [])]
    assert (prediction["model_version"], prediction["score"]) == ("pets 3", 0.75)
    assert prediction["result"][0]["value"] == {"choices": ["cat"]}
    assert tasks[3]["data"]["image"] == "/data/local-files/?d=photos/dogs/%C3%BC%2B%26.jpg"
    assert read_labels(path, root, IDS).labels == LABELS
    layout, listing = read_label_file(PhotoSource(path, images=root), "0.2", "0.2")
    assert {each.path: layout.classes[each.label] for each in listing.files} == LABELS


def test_other_columns_go_to_label_studio_and_back(root: Path):
    """Split and group are fields of the task."""
    path = root.parent / "labels.csv"
    path.write_text("image,label,split,group\ne.jpg,cat,test,g1\n")
    file = LabelsFile(path, root)
    tasks = json.loads(label_studio_tasks(file, root, IDS, {}, ""))
    file.close()
    assert {"split": "test", "group": "g1"}.items() <= tasks[-1]["data"].items()


def test_a_file_for_training_has_paths_from_the_folder(root: Path):
    """Whatever the label file's encoding, delimiter and base are; rows without a label or outside are left out."""
    path = root.parent / "labels.csv"
    text = "Split;image;label;note\ntest;photos/e.jpg;cät;x\n;photos/c,d.jpg;dog;\n;photos/cats/a 1.jpg;;\n;other.jpg;cat;\n"
    path.write_text(text, "utf-16")
    file = LabelsFile(path, root)
    file.put([Label(" data:x.jpg", "cat")])
    expected = 'image,label,split,group\ne.jpg,cät,test,\n"c,d.jpg",dog,,\n./ data:x.jpg,cat,,\n'
    assert rows_for_training(file).decode() == expected
    file.close()


def test_the_labelling_interface_has_a_choice_for_each_class():
    """As XML, whatever is in a name."""
    tree = ET.fromstring(label_studio_config(["a", 'b "<&>', "ü"]))
    assert [each.get("value") for each in tree.iter("Choice")] == ["a", 'b "<&>', "ü"]
    assert tree.find("Image").get("value") == "$image"
