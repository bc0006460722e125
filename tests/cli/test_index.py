"""`penult index` and `penult lookup`: photos in, neighbours out, as tables, JSON, Parquet and pictures."""

import io
import json
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from penult import cli
from penult.client import Client, NewItem
from penult.client.tools.collection_pages import pages
from penult.client.tools.reindex import reindex


@pytest.fixture(scope="module")
def running(models, start_server, tmp_path_factory):
    """A server of digits with a folder for collections."""
    return start_server(models, "--lookup", str(tmp_path_factory.mktemp("lookup")))


@pytest.fixture
def penult(capsys, running):
    """Run a verb against it: penult("index", "list") gives exit code, output and errors."""

    def run(*argv: object, json_too: bool = False) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [str(word) for word in argv] + ["--target", running.target]
        try:
            code = cli.main(words)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def album(photo_paths, tmp_path_factory):
    """The photos in folders by label."""
    folder = tmp_path_factory.mktemp("album")
    for n, path in enumerate(photo_paths):
        (folder / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, folder / path.parent.name / f"{n:03d}.png")
    return folder


@pytest.fixture
def filled(penult, album, running):
    """A collection, digits, of the album, with sources and thumbnails."""
    code, out, _ = penult(
        "index", "add", "digits", album, "--model", "digits", "--keep", "source", "--keep", "thumbnail"
    )
    assert (code, out) == (0, "100 of 100 items are in digits\n")
    yield "digits"
    with Client(running.target) as client:
        for each in client.list_collections():
            client.drop_collection(each.name)


def test_add_and_list(penult, filled, album, running):
    """Class folders become labels, paths within the folder ids; list and stats tell."""
    with Client(running.target) as client:
        page = client.get_items("digits", limit=1000, thumbnails=True)
    paths = sorted(path.relative_to(album).as_posix() for path in album.rglob("*.png"))
    assert [item.id for item in page] == paths
    assert all(item.label == item.id.split("/")[0] for item in page)
    assert all(item.thumbnail[:2] == b"\xff\xd8" and item.source == str(album / item.id) for item in page)
    code, out, _ = penult("index", "list")
    assert (code, out.splitlines()[1].split()) == (0, ["digits", "100", "digits", "128", "exact", "–"])
    told = json.loads(penult("index", "stats", "digits", "--json")[1])
    assert (told["items"], sum(told["labels"].values())) == (100, 100)
    assert "digits" in penult("index", "stats", "digits")[1]
    assert json.loads(penult("index", "list", "--json")[1])["collections"][0]["name"] == "digits"


def test_lookup_as_design_says(penult, filled, album):
    """--json gives, photo by photo, id, label, similarity and metadata of its neighbours; a bad photo its error."""
    photo = next(album.rglob("*.png"))
    bad = album.parent / "bad.png"
    bad.write_bytes(b"text")
    code, out, _ = penult("lookup", photo, bad, "--collection", "digits", "-k", "3", "--json")
    told = json.loads(out)
    assert (code, told["model"], told["version"]) == (1, "digits", 1)
    first, second = told["results"]
    assert first["image"] == str(photo)
    assert [set(each) for each in first["neighbours"]] == [{"id", "label", "similarity", "metadata"}] * 3
    assert first["neighbours"][0]["id"] == photo.relative_to(album).as_posix()
    assert second["error"]["code"] == "INVALID_ARGUMENT"


def test_lookup_prints_a_table(penult, filled, album):
    """For people: the photo once, then its neighbours."""
    photo = sorted(album.rglob("*.png"))[0]
    code, out, _ = penult("lookup", photo, "-c", "digits", "-k", "2", "--filter", "label=3", "--filter", "label=8")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["image", "similarity", "label", "id"]
    assert lines[1].startswith(str(photo))
    assert {line.split()[-2] for line in lines[1:3]} <= {"3", "8"}
    assert lines[3] == "model digits version 1"


GREEN, RED = (0x1B, 0x7F, 0x4D), (0xB3, 0x40, 0x2A)


def framed(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Count a colour's pixels above the legend."""
    return int((sheet[:-26] == colour).all(axis=2).sum())


def test_neighbours_that_are_all_wrong_are_framed_red(penult, filled, album, tmp_path):
    """A photo's own label is its folder's where any stored item bears it, near or not; else nothing is framed."""
    photo = sorted((album / "8").iterdir())[0]
    (tmp_path / "unknown").mkdir()
    shutil.copy(photo, tmp_path / "unknown" / "x.png")
    for image, is_red in ((photo, True), (tmp_path / "unknown" / "x.png", False)):
        out = tmp_path / "sheet.png"
        assert penult("lookup", image, "-c", "digits", "-k", "4", "--filter", "label=3", "--sheet", out)[0] == 0
        sheet = np.asarray(Image.open(out).convert("RGB"))
        assert framed(sheet, GREEN) == 0
        assert framed(sheet, RED) == (4 * (4 * 148 * 3 - 4 * 9) if is_red else 0)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--filter", "label=glas"], "no stored item has label 'glas'; did you mean glass?"),
        (["--filter", "label=kettle"], "no stored item has label 'kettle'\n"),
        (["--filter", "label=glas", "--filter", "label=kettle"], "no stored item has label 'glas' or 'kettle'"),
        (["--filter", "price>=7"], "no stored item has price within 7…"),
        (["--filter", "label=glass", "--filter", "price>=2"], "no stored item meets every --filter"),
        (["--max-distance", "0.000001", "--filter", "label=plate"], "nothing within 1e-06: the nearest is at 0."),
    ],
)
def test_why_nothing_was_found_is_told(penult, shelf, photo_paths, flags, told):
    """No such label, and the one that was meant; a range that is empty; conditions that exclude each other; too far."""
    code, out, _ = penult("lookup", photo_paths[0], "-c", shelf, *flags)
    assert code == 0
    assert told in out
    code, out, err = penult("lookup", photo_paths[0], "-c", shelf, *flags, "--json")
    assert (code, json.loads(out)["results"][0]["neighbours"], err.count("\n")) == (0, [], 1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--filter", "lable=glass"], "there is label, price; did you mean label?"),
        (["--filter", "cost>=1"], "has no field 'cost'"),
    ],
)
def test_unknown_fields_are_told(penult, shelf, photo_paths, flags, told):
    """A field that no item has is refused, with those there are."""
    code, out, err = penult("lookup", photo_paths[0], "-c", shelf, *flags)
    assert (code, out) == (1, "")
    assert told in err
    assert "there is label, price" in err


@pytest.fixture
def shelf(running, photos):
    """A small collection of two labels, with a number."""
    with Client(running.target) as client:
        items = [
            NewItem(f"{n}", photo, label=["glass", "plate"][n % 2], metadata={"price": float(1 + n % 2)})
            for n, photo in enumerate(photos[1:7])
        ]
        client.put_items("shelf", items, fields={"price": "number"})
        yield "shelf"
        client.drop_collection("shelf")


def test_a_contact_sheet_is_drawn(penult, filled, album, tmp_path):
    """--sheet draws each photo with its neighbours: the query left, right labels framed green, others red."""
    photos = sorted(album.rglob("*.png"))[:3]
    code, out, _ = penult("lookup", *photos, "-c", "digits", "-k", "4", "--sheet", tmp_path / "sheet.png")
    assert code == 0
    assert f"sheet: {tmp_path / 'sheet.png'}" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 12 + 3 * (144 + 34 + 12) + 26
    assert sheet.shape[1] == 24 + 5 * 156 + 12
    assert framed(sheet, GREEN) > 1000  # the nearest of each is itself
    query = np.asarray(Image.open(photos[0]).convert("RGB").resize((144, 144), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(sheet[12:156, 12:156], query)


def test_removed_items_are_gone(penult, filled, running):
    """remove tells how many went; drop takes the collection away."""
    with Client(running.target) as client:
        ids = [item.id for item in client.get_items("digits", limit=3)]
        assert penult("index", "remove", "digits", *ids, "absent")[:2] == (0, "3 items removed\n")
        assert client.get_items("digits", ids) == []
    code, out, _ = penult("index", "drop", "digits", "--yes")
    assert (code, out) == (0, "digits removed\n")
    assert json.loads(penult("index", "list", "--json")[1])["collections"] == []


@pytest.mark.parametrize(("answer", "is_gone"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_drop_asks(penult, shelf, running, monkeypatch, answer, is_gone):
    """A person is asked, with the number of items; anything but yes leaves the collection."""
    asked = io.StringIO(answer + "\n")
    asked.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", asked)
    code, out, err = penult("index", "drop", shelf)
    assert "Remove shelf with its 6 items?" in out
    assert (code, err) == ((0, "") if is_gone else (1, "penult: shelf is unchanged\n"))
    with Client(running.target) as client:
        assert [each.name for each in client.list_collections()] == ([] if is_gone else ["shelf"])
        client.put_items("shelf", [NewItem("x", descriptor=np.ones(128, dtype=np.float32))])  # for the fixture's end


def test_reindex_loses_nothing_unless_told_to(penult, shelf, running, photos):
    """Items whose photos are not to be had would go with the old collection: that is refused, and --yes allows it."""
    with Client(running.target) as client:
        thumbnail = client.put_items("shelf", [NewItem("kept", photos[0], label="glass", thumbnail=photos[0])])
        assert thumbnail == (None,)
        code, out, err = penult("index", "reindex", shelf, "--model", "digits")
        assert (code, out) == (1, "")
        assert "items of shelf would be lost, as their photos are missing: 0, 1, 2 and maybe more" in err
        assert [(each.name, each.items) for each in client.list_collections()] == [("shelf", 7)]
        code, out, _ = penult("index", "reindex", shelf, "--model", "digits", "--yes")
        assert (code, out.startswith("1 items of shelf are described by digits now; 6 were left out")) == (0, True)


def test_out_to_parquet_and_in_again(penult, filled, running, tmp_path):
    """What export writes, add takes: the same items, bit for bit, in another collection."""
    code, out, _ = penult("index", "export", "digits", tmp_path / "digits.parquet")
    assert (code, out) == (0, f"100 items are in {tmp_path / 'digits.parquet'}\n")
    assert penult("index", "add", "again", tmp_path / "digits.parquet")[0] == 0
    with Client(running.target) as client:
        pages = [client.get_items(name, limit=1000, descriptors=True, thumbnails=True) for name in ("digits", "again")]
    for one, other in zip(*pages, strict=True):
        assert (one.id, one.label, one.source, one.thumbnail) == (other.id, other.label, other.source, other.thumbnail)
        np.testing.assert_array_equal(one.descriptor, other.descriptor)


def test_parquet_columns_become_fields(penult, filled, photos, tmp_path, running):
    """Columns beyond the known ones are metadata with their types; images are described; filters follow the types."""
    table = pa.table(
        {"id": [f"{n}" for n in range(20)], "image": photos[:20], "label": ["x"] * 20,
         "price": list(range(20)), "maker": ["a", "b"] * 10, "sold": [n % 3 == 0 for n in range(19)] + [None]}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "shop.parquet")
    assert penult("index", "add", "shop", tmp_path / "shop.parquet")[0] == 0
    with Client(running.target) as client:
        (told,) = [each for each in client.list_collections() if each.name == "shop"]
        assert told.fields == {"maker": "string", "price": "number", "sold": "boolean"}
        assert client.get_items("shop", ["19"])[0].metadata == {"price": 19.0, "maker": "b"}
    (tmp_path / "q.png").write_bytes(photos[0])
    flags = ["--filter", "price>=5", "--filter", "price<=12", "--filter", "maker=a", "--filter", "sold=true"]
    out = json.loads(penult("lookup", tmp_path / "q.png", "-c", "shop", *flags, "--json")[1])
    assert {each["id"] for each in out["results"][0]["neighbours"]} == {"6", "12"}


@pytest.mark.parametrize(
    ("table", "told"),
    [({"id": ["a"]}, "needs a column id"), ({"descriptor": [[1.0]]}, "needs a column id"),
     ({"id": ["a"], "descriptor": [[1.0]], "x": [[1]]}, "has a column 'x'"),
     ({"id": [None], "descriptor": [[1.0]]}, "has a row without id")],
)  # fmt: skip
def test_wrong_parquet_files_are_told(penult, tmp_path, table, told):
    """What is missing or cannot be is one line."""
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    code, out, err = penult("index", "add", "wrong", tmp_path / "x.parquet")
    assert (code, out) == (1, "")
    assert told in err
    assert err.count("\n") == 1
    (tmp_path / "y.parquet").write_text("no table")
    assert "cannot be read" in penult("index", "add", "wrong", tmp_path / "y.parquet")[2]


def test_duplicates_are_found(penult, filled, album, tmp_path):
    """Two copies of a photo, one in a wrong folder, are a pair that bears two labels."""
    (tmp_path / "9").mkdir()
    shutil.copy(sorted((album / "3").iterdir())[0], tmp_path / "9" / "copy.png")
    penult("index", "add", "digits", tmp_path)
    told = json.loads(penult("index", "duplicates", "digits", "--max-distance", "0.0001", "--json")[1])
    right = {
        "id": sorted((album / "3").iterdir())[0].relative_to(album).as_posix(),
        "label": "3",
        "other": "9/copy.png",
        "other_label": "9",
    }
    assert [{name: pair[name] for name in right} for pair in told["pairs"]] == [right]
    code, out, _ = penult("index", "duplicates", "digits", "--max-distance", "0.0001")
    assert (code, out.splitlines()[-1]) == (0, "1 pairs; 1 of them have two labels")


def test_reindex_describes_anew_and_switches(penult, filled, models, start_server, album, tmp_path):
    """With another model all items are described again, by source or thumbnail, and the name changes hands in one step."""
    shutil.copytree(models / "digits", tmp_path / "models" / "digits")
    server = start_server(tmp_path / "models", "--lookup", str(tmp_path / "lookup"), "--watch-s", "0.2")
    with Client(server.target) as client:
        assert cli.main(["index", "add", "d", str(album), "--keep", "source", "--target", server.target]) == 0
        before = client.list_collections()[0].fingerprint
        # Another network: the same bundle would have the same fingerprint.
        from penult.export.config.train import TrainSettings
        from penult.export.jobs.demo import write_digits
        from penult.export.jobs.train import train

        train(TrainSettings(data=write_digits(tmp_path / "few", "01"), out=tmp_path / "models" / "other", arch="tiny5",
                            weights="none", freeze=0, augment="gentle", epochs=1))  # fmt: skip
        while len(client.list_models()) < 2:
            pass
        command = ["index", "reindex", "d", "--model", "other", "--target", server.target]
        assert cli.main(command) == 0
        (told,) = client.list_collections()
        assert (told.name, told.items, told.model) == ("d", 100, "other")
        assert told.fingerprint != before
        answer = client.lookup([sorted(album.rglob("*.png"))[0]], "d")
        assert answer.model == "other"
        assert answer.results[0][0].id == sorted(album.rglob("*.png"))[0].relative_to(album).as_posix()
        _reindex_while_others_change(client, told, sorted(album.rglob("*.png"))[:2])


def _reindex_while_others_change(client, told, photos) -> None:
    """What is put, relabelled and deleted while the items are described is so in the new collection too."""
    ids = [item.id for item in client.get_items("d", limit=2)]

    def step(count: int) -> None:
        if not client.get_items("d", ["late"]):
            items = [
                NewItem("late", photos[0], source=str(photos[0])),
                NewItem(ids[1], photos[1], label="anew", source=str(photos[1])),
            ]
            client.put_items("d", items, model="other")
            client.delete_items("d", ids[:1])

    walk = partial(pages, client, "d", descriptors=True, thumbnails=True)
    assert reindex(client, told, walk, "digits", 0, None, step) == (100, [])
    assert client.list_collections()[0].model == "digits"
    found = {item.id: item.label for item in client.get_items("d", ["late", *ids])}
    assert found == {"late": "", ids[1]: "anew"}


def test_classify_by_neighbours(penult, filled, album):
    """penult classify --scorer neighbours --collection votes, and tells the voters in --json."""
    photos = sorted(album.rglob("*.png"))[::10]
    code, out, _ = penult("classify", *photos, "--scorer", "neighbours", "-c", "digits", "-k", "5", "--json")
    told = json.loads(out)
    assert (code, told["scorer"]) == (0, "neighbours")
    assert sum(r["label"] == p.parent.name for r, p in zip(told["results"], photos, strict=True)) >= 9
    assert all(len(result["neighbours"]) == 5 for result in told["results"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [(("lookup", "x.png", "-c", "absent"), "there is no collection"), (("index", "stats", "absent"), "there is no collection"),
     (("lookup", "x.png", "-c", "digit"), "there is digits; did you mean digits?"), (("classify", "x.png", "-c", "digit"), "did you mean digits?"),
     (("index", "remove", "digit", "x"), "did you mean digits?"), (("index", "drop", "digit", "--yes"), "did you mean digits?"),
     (("index", "add", "b a d", "."), "1 to 64 letters"),
     (("lookup", "x.png", "-c", "digits", "--filter", "label>=x"), "is no number"), (("index", "add", "c", "/nowhere"), "cannot be read")],
)  # fmt: skip
def test_mistakes_are_one_line(penult, filled, argv, told, tmp_path, monkeypatch, photos):
    """Each mistake is one line that says what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(photos[0])
    code, out, err = penult(*argv)
    assert (code, out) == (1, "")
    assert told in err
    assert err.count("\n") == 1
