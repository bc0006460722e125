"""penult index copy: between engines, bit for bit, again where it was cut off, on the command line."""

import json

import pytest

from penult import cli
from penult.lookup.copying import copy_collection
from penult.lookup.embedded import EmbeddedStore
from penult.lookup.errors import CollectionExists, OtherDescriptors
from penult.lookup.pgvector import PgvectorStore
from penult.lookup.types import CollectionSpec

FIELDS = {"price": "number", "maker": "string", "sold": "boolean"}


@pytest.fixture
def stores(tmp_path, make_database, make_items):
    """A folder with a collection of 1,200 things, and an empty database."""
    source, target = EmbeddedStore(tmp_path / "lookup"), PgvectorStore(make_database())
    collection = source.create(CollectionSpec("things", 24, "f" * 64, "pets", FIELDS))
    items = make_items(1200)
    collection.upsert(items[:1000])
    collection.upsert(items[1000:])
    yield source, target, items
    source.close()
    target.close()


class Cut(Exception):
    """What ends a copy in its midst."""


def test_a_copy_is_the_same_and_goes_on_where_it_was_cut(stores):
    """Cut off after 500 items and begun again, the other store has all, bit for bit; a third time there is nothing."""
    source, target, items = stores
    passed = []

    def cut(count: int) -> None:
        passed.append(count)
        raise Cut

    with pytest.raises(Cut):
        copy_collection(source, target, "things", cut)
    assert target.open("things").stats().items == sum(passed) == 500
    steps = []
    assert copy_collection(source, target, "things", steps.append) == 700
    assert sum(steps) == 1200
    for item, copied in zip(items, target.open("things").get([item.id for item in items]), strict=False):
        assert copied.vector.tobytes() == item.vector.tobytes()
        assert (copied.id, copied.label, dict(copied.metadata)) == (item.id, item.label, dict(item.metadata))
        assert (copied.source, copied.thumbnail) == (item.source, item.thumbnail)
    assert copy_collection(source, target, "things", steps.append) == 0


def test_what_changed_is_copied_again(stores, make_items):
    """Items that were put again, with another descriptor or another price, go over anew."""
    source, target, _ = stores
    copy_collection(source, target, "things", lambda count: None)
    source.open("things").upsert(make_items(3, seed=9, start=50))
    assert copy_collection(source, target, "things", lambda count: None) == 3


def test_another_kind_of_collection_is_refused(stores):
    """A collection of that name with another fingerprint, or other fields, is not written to."""
    source, target, _ = stores
    target.create(CollectionSpec("things", 24, "a" * 64, "pets", FIELDS))
    with pytest.raises(OtherDescriptors):
        copy_collection(source, target, "things", lambda count: None)
    target.drop("things")
    target.create(CollectionSpec("things", 24, "f" * 64, "pets", {"colour": "string"}))
    with pytest.raises(CollectionExists):
        copy_collection(source, target, "things", lambda count: None)


def test_the_verb(tmp_path, make_database, make_items, capsys):
    """On the command line: all collections or those named, there and back again, and one line for what cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        store = EmbeddedStore(tmp_path / "lookup")
        for name in ("one", "two"):
            store.create(CollectionSpec(name, 24, "f" * 64, "pets", FIELDS)).upsert(make_items(20))
        store.close()
        url = make_database()
        assert cli.main(["index", "copy", "lookup", url]) == 0
        assert capsys.readouterr().out == "one: 20 items copied, 20 are there\ntwo: 20 items copied, 20 are there\n"
        assert cli.main(["index", "copy", url, "back", "two", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"copied": {"two": 20}}
        assert cli.main(["index", "copy", "lookup", url, "twoo"]) == 1
        assert (
            capsys.readouterr().err
            == "penult: there is no collection twoo in FROM; there is one, two; did you mean two?\n"
        )
        assert cli.main(["index", "copy", "lookup", "mysql://x"]) == 1
        assert "postgresql://" in capsys.readouterr().err
        assert cli.main(["index", "copy", "lookup", "postgresql://127.0.0.1:1/x"]) == 1
        assert capsys.readouterr().err.startswith("penult: the database does not answer")
