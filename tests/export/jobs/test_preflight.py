"""Wrong options and folders are refused before any large library is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess

_LARGE = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "onnx", "onnxruntime")
# Each is absent for this process: what imports one of them is answered with what to install.
_CODE = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
from penult import cli
told = []
for words in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as exit_:
            code = exit_.code
    told.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def cases(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], str]]:
    """Wrong command lines by name, each with what its line must say."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "file").write_bytes(b"")
    (folder / "one" / "cat").mkdir(parents=True)
    for name in ("tiny5", "vgg16"):
        listed = {file: FileEntry(1, "0") for file in ("model.onnx", "svm.pkl", "golden.npz")}
        manifest = Manifest(name, ("a", "b"), Preprocess(32, 32), 128, "svm", {"dense": 1.0, "svm": 1.0}, files=listed)
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "manifest.json").write_bytes(manifest.to_json())
    good, model, tiny = str(few_digits), str(folder / "tiny5"), ["--arch", "tiny5", "--weights", "none"]
    train = ["train", good, "--out", str(folder / "models" / "x"), *tiny]
    absent = str(folder / "absent")
    cases = {
        "data": (["train", absent, *tiny], "absent"),
        "classes": (["train", str(folder / "one"), *tiny], "one"),
        "val": ([*train, "--val", "lots"], "--val"),
        "out": (["train", good, "--out", str(folder / "file" / "x"), *tiny], "--out"),
        "save": ([*train, "--save-weights", str(folder)], "--save-weights"),
        "name": (["train", good, "--out", str(folder / "ä b"), *tiny], "model name"),
        "arch": ([*train, "--arch", "resnet19"], "did you mean resnet18?"),
        "weights": ([*train, "--weights", absent], "does not exist"),
        "empty": ([*train, "--weights", str(folder / "file"), "--freeze", "1"], "is empty"),
        "download": ([*train, "--weights", "imagenet"], "torchvision has no imagenet weights for tiny5"),
        "v2": ([*train, "--arch", "vgg16", "--weights", "imagenet-v2"], "it has imagenet"),
        "crop": ([*train, "--crop", "8"], "--crop 8 is less than half"),
        "whiten": ([*train, "--whiten", "129"], "--whiten 129"),
        "range": ([*train, "--dropout", "1"], "--dropout"),
        "repeats": ([*train, "--repeats", "3"], "add --sweep"),
        "svm": ([*train, "--svm", "lin"], "did you mean linear?"),
        "svm model": (["svm", absent, good], "holds no version"),
        "svm version": (["svm", model, good, "--version", "99"], "has no version 99"),
        "svm data": (["svm", model, absent], "absent"),
        "svm both": (["svm", model, good, "--from-collection", "c"], "either"),
        "svm val": (["svm", model, "--from-collection", "c", "--val", "0.2"], "--val would have no effect"),
        "svm kernel": (["svm", model, good, "--kernel", "rfb"], "did you mean rbf?"),
        "quantize model": (["quantize", absent, good], "holds no version"),
        "quantize data": (["quantize", model, absent], "absent"),
        "quantize network": (["quantize", str(folder / "vgg16"), good], "int8 is for"),
        "quantize to": (["quantize", model, good, "--to", "int88"], "did you mean int8?"),
        "compare model": (["compare", absent, good], "holds no version"),
        "compare one": (["compare", model, good], "has one version, 1"),
        "compare version": (["compare", model, good, "--versions", "1,99"], "has no version 99"),
        "compare versions": (["compare", model, good, "--versions", "latest"], "give them as 3,4"),
        "verb": (["trian"], "did you mean train?"),
    }
    for name in ("data", "arch", "weights", "crop", "name"):
        words, said = cases[name]
        cases |= {f"{name}, planned": ([*words, "--dry-run"], said)}
    words = ["train", good, "--out", str(folder / "file" / "x"), "--sweep", "freeze", "--weights", str(folder / "file")]
    return cases | {"sweep": (words, "is empty")}


@pytest.fixture(scope="module")
def answers(cases: dict[str, tuple[list[str], str]]) -> dict[str, tuple[int, str, str]]:
    """The (exit code, stdout, stderr) of each, from a process that has none of the large libraries."""
    lines = json.dumps([words for words, _ in cases.values()])
    done = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(_LARGE), lines],
        capture_output=True, text=True, timeout=300, check=True, env=os.environ | {"RANK": "0"},
    )  # fmt: skip
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def test_what_is_wrong_is_said_without_the_large_libraries(
    cases: dict[str, tuple[list[str], str]], answers: dict[str, tuple[int, str, str]]
):
    """Every wrong option, folder and file: one line that says what, and no library was missed."""
    for name, (_, said) in cases.items():
        code, out, err = answers[name]
        assert (code, out) in {(1, ""), (2, "")}, name
        (line,) = err.splitlines()
        assert said in line, name
        assert "pip install" not in line, name


def test_what_is_right_goes_on_to_them(few_digits: Path, tmp_path: Path):
    """The same process without a fault does reach for PyTorch: the test above can fail. It leaves nothing behind."""
    words = ["train", str(few_digits), "--out", str(tmp_path / "m" / "x"), "--arch", "tiny5", "--weights", "none"]
    done = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(_LARGE), json.dumps([words])],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    (code, _, err), *_ = json.loads(done.stdout)
    assert code == 1
    assert err.splitlines()[0] == "loading PyTorch"
    assert "pip install '.[export]'" in err
    assert not list(tmp_path.iterdir())
