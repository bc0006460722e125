"""manifest.json: what is written is what is read, and nothing else is read."""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from penult.bundle.errors import BundleError
from penult.bundle.manifest import (
    FORMAT_VERSION,
    MODEL_NAME,
    SVM_NAME,
    FileEntry,
    Manifest,
    check_model_name,
    parse_version,
)
from penult.bundle.preprocess import PREPROCESS_VERSION, Preprocess

_JUNK = [
    None,
    True,
    -1,
    0,
    1.5,
    10**40,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    {},
    ["a", "a"],
    [[]],
    {"a": 1},
]


def _refused(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(data)
    assert "\n" not in caught.value.message
    return caught.value.reason


def _edited(manifest: Manifest, **changes: Any) -> bytes:
    return json.dumps(json.loads(manifest.to_json()) | changes).encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_round_trip(manifest: Manifest):
    """Every value comes back equal, of the same type, with non-ASCII class names readable in the file."""
    manifest = replace(manifest, classes=("Größe", "猫"))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert "猫" in manifest.to_json().decode()


def test_the_trained_manifest_states_what_the_design_promises(trained: Any):
    """A real bundle's manifest holds the fields that users and tools rely on."""
    values = json.loads((trained.folder / "manifest.json").read_bytes())
    assert {
        "format_version", "architecture", "classes", "preprocess", "logits_name", "descriptor_name",
        "descriptor_length", "default_scorer", "libraries", "training", "files", "fingerprint",
    } <= set(values)  # fmt: skip
    assert set(values["preprocess"]) == {"resize", "crop", "interpolation", "mean", "std", "colors"}
    assert "version" not in values
    assert {"torch", "numpy", "pillow", "scikit-learn"} <= set(values["libraries"])
    assert values["files"]["model.onnx"]["size"] == (trained.folder / "model.onnx").stat().st_size


def test_the_fingerprint_changes_with_what_decides_the_descriptor(manifest: Manifest):
    """Another network or another preprocessing value gives another fingerprint."""
    others = [replace(manifest, files={**manifest.files, MODEL_NAME: FileEntry.of(b"other")})]
    for change in (
        {"resize": 33},
        {"crop": 31},
        {"interpolation": "bicubic"},
        {"mean": (0.5,) * 3},
        {"std": (0.5,) * 3},
        {"fit": "stretch"},
        {"colors": "srgb"},
    ):
        others.append(replace(manifest, preprocess=replace(manifest.preprocess, **change)))
    assert len({manifest.fingerprint, *(other.fingerprint for other in others)}) == 9


def test_the_fingerprint_changes_with_the_preprocessing_code(manifest: Manifest, monkeypatch: pytest.MonkeyPatch):
    """Raising PREPROCESS_VERSION, as a change of the pixels demands, gives another fingerprint."""
    before = manifest.fingerprint
    monkeypatch.setattr("penult.bundle.manifest.PREPROCESS_VERSION", PREPROCESS_VERSION + 1)
    assert manifest.fingerprint != before


def test_the_fingerprint_stays_when_the_descriptor_does(manifest: Manifest):
    """A new SVM, other class names, temperatures or training notes leave descriptors comparable."""
    svm = {**manifest.files, SVM_NAME: FileEntry.of(b"other")}
    for change in ({"files": svm}, {"classes": ("x", "y")}, {"temperatures": {}}, {"training": {}}, {"libraries": {}}):
        assert replace(manifest, **change).fingerprint == manifest.fingerprint


def test_a_fingerprint_that_does_not_fit_is_refused(manifest: Manifest):
    """The stored fingerprint must be the one of the stored values."""
    assert _refused(_edited(manifest, fingerprint="0" * 64)) == "MANIFEST_FINGERPRINT"
    assert _refused(_edited(manifest, preprocess=json.loads(manifest.to_json())["preprocess"] | {"resize": 40})) == (
        "MANIFEST_FINGERPRINT"
    )


def test_unknown_fields_are_ignored(manifest: Manifest):
    """A field that a later penult adds does not keep this one from reading."""
    assert Manifest.from_json(_edited(manifest, novelty={"threshold": 3})) == manifest


def test_a_newer_format_is_refused(manifest: Manifest):
    """A higher format version is refused with what to do, before its fields are looked at."""
    assert _refused(_edited(manifest, format_version=FORMAT_VERSION + 1)) == "MANIFEST_VERSION"
    assert _refused(b'{"format_version": 2}') == "MANIFEST_VERSION"


@pytest.mark.parametrize(
    "field",
    ["format_version", "architecture", "classes", "preprocess", "descriptor_length", "default_scorer", "temperatures",
     "files", "fingerprint"],
)  # fmt: skip
def test_missing_fields_are_refused(manifest: Manifest, field: str):
    """No field without a default may lack."""
    values = json.loads(manifest.to_json())
    del values[field]
    assert _refused(json.dumps(values).encode()).startswith("MANIFEST_")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["cat", "cat"]}, {"classes": ["cat"]}, {"classes": []}, {"classes": ["cat", ""]},
        {"classes": ["cat", 5]}, {"classes": None}, {"classes": "ab"}, {"classes": {"cat": 0, "dog": 1}},
        {"classes": ["\ud800", "dog"]}, {"default_scorer": "knn"}, {"default_scorer": None}, {"default_scorer": []},
        {"descriptor_length": 0}, {"descriptor_length": -1}, {"descriptor_length": "128"}, {"descriptor_length": 1.5},
        {"descriptor_length": True}, {"temperatures": {"dense": 1.0}}, {"temperatures": {"dense": 0.0, "svm": 1.0}},
        {"temperatures": {"dense": -1.0, "svm": 1.0}}, {"temperatures": {"dense": "1", "svm": 1.0}},
        {"temperatures": {"dense": float("nan"), "svm": 1.0}}, {"temperatures": {"dense": float("inf"), "svm": 1.0}},
        {"temperatures": 1.0}, {"files": []}, {"files": {}}, {"preprocess": None}, {"preprocess": []},
        {"architecture": None}, {"input_name": 5}, {"logits_name": None}, {"descriptor_name": ["descriptor"]},
        {"libraries": 3}, {"training": 3},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values_are_refused(manifest: Manifest, changes: dict[str, Any]):
    """Values of a wrong type or that contradict each other are refused."""
    assert _refused(_edited(manifest, **changes)) == "MANIFEST_INVALID"


@pytest.mark.parametrize(
    "changes",
    [{"crop": 64}, {"resize": 32.0}, {"crop": True}, {"resize": "32"}, {"interpolation": "lanczos"}, {"mean": [0.5]},
     {"mean": ["a", "b", "c"]}, {"mean": [float("nan")] * 3}, {"std": [1, 1, 0]}, {"std": 1}],
    ids=str,
)  # fmt: skip
def test_wrong_preprocessing_is_refused(manifest: Manifest, changes: dict[str, Any]):
    """Preprocessing values are refused as such, not only because the fingerprint differs."""
    assert _refused(_edited(manifest, preprocess=json.loads(manifest.to_json())["preprocess"] | changes)) == (
        "MANIFEST_INVALID"
    )


def test_a_default_scorer_must_be_in_the_bundle(manifest: Manifest):
    """A bundle without an SVM has the dense scorer only, and cannot name the other as its default."""
    files = {name: entry for name, entry in manifest.files.items() if name != SVM_NAME}
    without = replace(manifest, files=files, temperatures={"dense": 1.0})
    assert Manifest.from_json(without.to_json()).scorers == ("dense",)
    assert Manifest.from_json(manifest.to_json()).scorers == ("dense", "svm")
    assert _refused(replace(without, default_scorer="svm").to_json()) == "MANIFEST_INVALID"


def test_stated_scorers_round_trip(manifest: Manifest):
    """An SVM for other classes than the network's: its scorers and the network's logits are stated, and come back."""
    stated = replace(
        manifest, default_scorer="svm", temperatures={"svm": 0.5}, stated_scorers=("svm",), stated_logits_length=10
    )
    again = Manifest.from_json(stated.to_json())
    assert again == stated
    assert (again.scorers, again.logits_length) == (("svm",), 10)
    values = json.loads(stated.to_json())
    assert (values["scorers"], values["logits_length"]) == (["svm"], 10)
    assert {"stated_scorers", "stated_logits_length"}.isdisjoint(values)


def test_usual_bundles_state_neither(manifest: Manifest):
    """Without them, the files tell the scorers, and there is a logit per class; older manifests read as before."""
    assert {"scorers", "logits_length"}.isdisjoint(json.loads(manifest.to_json()))
    assert (manifest.scorers, manifest.logits_length) == (("dense", "svm"), 2)
    assert Manifest.from_json(_edited(manifest, scorers=["dense", "svm"], logits_length=2)).scorers == ("dense", "svm")


@pytest.mark.parametrize(
    "changes",
    [{"scorers": []}, {"scorers": ["dense"]}, {"scorers": ["svm", "dense"]}, {"scorers": ["knn"]}, {"scorers": None},
     {"scorers": "svm"}, {"scorers": ["svm", "svm"]}, {"scorers": [["svm"]]}, {"scorers": ["svm"]},
     {"logits_length": 3}, {"logits_length": 0}, {"logits_length": "2"}, {"logits_length": True},
     {"logits_length": None}, {"scorers": ["svm"], "default_scorer": "svm", "logits_length": 0},
     {"scorers": ["svm"], "default_scorer": "svm", "temperatures": {"dense": 1.0}}],
    ids=str,
)  # fmt: skip
def test_scorers_that_cannot_be_are_refused(manifest: Manifest, changes: dict[str, Any]):
    """Unknown scorers, an SVM without or beside its file, a dense head with other logits than classes are refused."""
    assert _refused(_edited(manifest, **changes)) == "MANIFEST_INVALID"


def test_an_svm_that_is_stated_needs_its_file(manifest: Manifest):
    """The svm scorer without svm.pkl is refused."""
    files = {name: entry for name, entry in manifest.files.items() if name != SVM_NAME}
    without = replace(manifest, files=files, default_scorer="svm", stated_scorers=("svm",))
    assert _refused(without.to_json()) == "MANIFEST_INVALID"


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_network_and_goldens_must_be_listed(manifest: Manifest, name: str):
    """A manifest that does not list the network or the goldens is refused."""
    values = json.loads(manifest.to_json())
    del values["files"][name]
    assert _refused(json.dumps(values).encode()) == "MANIFEST_INVALID"


@pytest.mark.parametrize(
    "entry", [5, None, [], {"size": 5}, {"sha256": "0"}, {"size": "5", "sha256": "0"}, {"size": 5.0, "sha256": "0"},
              {"size": True, "sha256": "0"}, {"size": 5, "sha256": 0}], ids=str,
)  # fmt: skip
def test_wrong_file_entries_are_refused(manifest: Manifest, entry: object):
    """Every listed file has a whole number of bytes and a digest; anything else is refused."""
    values = json.loads(manifest.to_json())
    values["files"][SVM_NAME] = entry
    assert _refused(json.dumps(values).encode()) == "MANIFEST_INVALID"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_manifest_is_refused(data: bytes):
    """Bytes that are no JSON object, also hostile ones, are refused like any other bad manifest."""
    assert _refused(data) == "MANIFEST_INVALID"


def test_mutated_values_raise_nothing_but_bundle_errors(manifest: Manifest):
    """3,000 manifests with one to three values replaced or removed (seeded) are read, or refused with BundleError."""
    good, outcomes = json.loads(manifest.to_json()), set()
    for seed in range(3000):
        values, rng = copy.deepcopy(good), random.Random(seed)
        for _ in range(rng.randint(1, 3)):
            *parents, key = rng.choice(list(_places(values)))
            if rng.random() < 0.2:
                del _at(values, tuple(parents))[key]
            else:
                _at(values, tuple(parents))[key] = copy.deepcopy(rng.choice(_JUNK))
        outcomes.add(_outcome(json.dumps(values).encode()))
    assert {"read", "MANIFEST_INVALID", "MANIFEST_VERSION", "MANIFEST_FINGERPRINT"} == outcomes


def test_every_flipped_bit_is_read_or_refused(manifest: Manifest):
    """One wrong bit in the file, wherever it is, raises BundleError at most."""
    good = manifest.to_json()
    outcomes = set()
    for at in range(len(good)):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        outcomes.add(_outcome(bytes(data)))
    assert {"MANIFEST_INVALID", "MANIFEST_FINGERPRINT"} < outcomes


def _outcome(data: bytes) -> str:
    try:
        Manifest.from_json(data)
    except BundleError as error:
        return error.reason
    return "read"


@pytest.mark.parametrize("name", ["digits", "A-b_9", "x" * 64, "-", "0"])
def test_good_model_names(name: str):
    """Letters, digits, underscore and hyphen name a model."""
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "..", "a/b", "a b", "a.b", "größe", "a\n", "\0", "a\\b", "~"])
def test_bad_model_names(name: str):
    """Nothing that could be a path, or that a shell or a log would trip over, names a model."""
    with pytest.raises(BundleError) as caught:
        check_model_name(name)
    assert caught.value.reason == "MODEL_NAME"


@pytest.mark.parametrize(
    ("folder", "version"),
    [("1", 1), ("12", 12), ("999999999", 999_999_999), ("0", None), ("01", None), ("-1", None), ("1.0", None),
     ("1\n", None), ("١", None), ("", None), (".writing-1", None), ("1234567890", None), ("latest", None)],
)  # fmt: skip
def test_versions_are_plain_numbers(folder: str, version: int | None):
    """Only 1, 2, 3, … in ASCII digits is a version; each has one spelling."""
    assert parse_version(folder) == version


def test_preprocess_values_survive_as_numbers(manifest: Manifest):
    """Means and deviations come back bit for bit."""
    spec = Preprocess(mean=(0.1 + 0.2, 1 / 3, 0.485), std=(0.229, 1e-7, 1e7))
    assert Manifest.from_json(replace(manifest, preprocess=spec).to_json()).preprocess == spec


def test_a_fit_comes_back_and_the_usual_one_is_not_written(manifest: Manifest):
    """Bundles that crop are byte for byte what they were before there was another fit; an unknown one is refused."""
    stretched = replace(manifest, preprocess=replace(manifest.preprocess, fit="stretch"))
    assert Manifest.from_json(stretched.to_json()).preprocess.fit == "stretch"
    assert b'"fit"' not in manifest.to_json()
    assert _refused(stretched.to_json().replace(b'"stretch"', b'"letterbox"')) == "MANIFEST_INVALID"


def test_colors_come_back_and_those_of_before_are_not_written(manifest: Manifest):
    """Bundles that ignore profiles are byte for byte what they were; an unknown way is refused."""
    converted = replace(manifest, preprocess=replace(manifest.preprocess, colors="srgb"))
    assert Manifest.from_json(converted.to_json()).preprocess.colors == "srgb"
    assert b'"colors"' not in manifest.to_json()
    assert _refused(converted.to_json().replace(b'"srgb"', b'"display-p3"')) == "MANIFEST_INVALID"


@pytest.mark.parametrize(("sizes"), [[(2 << 30) + 1], [2 << 30, 2 << 30, 1], [10**15]])
def test_files_of_gigabytes_are_refused(manifest: Manifest, sizes: list[int]):
    """Files are read into memory, so more than 2 GiB for one or 4 GiB in all is refused before any is opened."""
    listed = {name: FileEntry(size, "0" * 64) for name, size in zip(("report/a", "b", "c"), sizes, strict=False)}
    assert _refused(replace(manifest, files={**manifest.files, **listed}).to_json()) == "MANIFEST_INVALID"


@pytest.mark.parametrize("field", ["format_version", "default_scorer", "classes", "input_name"])
def test_a_manifest_cannot_write_log_lines(manifest: Manifest, field: str):
    """Whatever text a field holds, a refusal is one short line of plain characters."""
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(_edited(manifest, **{field: "1\n\x1b[31mloaded\u2028" * 10_000, "descriptor_length": 0}))
    assert caught.value.message.isprintable()
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 300


def test_a_version_that_only_equals_the_right_one_is_refused(manifest: Manifest):
    """`true` and 1.0 are no format versions."""
    for version in (True, 1.0):
        assert _refused(_edited(manifest, format_version=version)) == "MANIFEST_INVALID"
