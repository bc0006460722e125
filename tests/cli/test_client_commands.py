"""The client's verbs on the command line: tables for people, JSON for scripts, exit codes, one line per error."""

import json
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from penult import cli


@pytest.fixture
def penult(capsys, server):
    """Run a verb in this process, by default against the shared server: (exit code, stdout, stderr)."""

    def run(*argv: object, target: str | None = server.target) -> tuple[int, str, str]:
        asks = argv[0] in {"classify", "describe"} and target and "--target" not in argv
        words = [str(word) for word in argv] + (["--target", target] if asks else [])
        capsys.readouterr()
        try:
            code = cli.main(words)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def damaged(models, tmp_path):
    """A copy of the digits model whose network has one byte changed."""
    shutil.copytree(models / "digits", tmp_path / "digits")
    file = tmp_path / "digits" / "1" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    return tmp_path / "digits"


def one_line(stderr: str) -> str:
    """Return the only line of an error, which names the program and shows no traceback."""
    (line,) = stderr.splitlines()
    assert line.startswith("penult: ")
    assert "Traceback" not in line
    return line


def test_classify_prints_a_table(penult, photo_paths):
    """People get a line per photo with label (novel or not), probability, distance and score, and what answered."""
    code, out, err = penult("classify", *photo_paths[:3], "--model", "digits", "--scorer", "svm")
    header, *rows, last, note = out.splitlines()
    assert (code, err) == (0, "")
    assert header.split() == ["image", "label", "probability", "distance", "score"]
    assert [row.split()[0] for row in rows] == [str(path) for path in photo_paths[:3]]
    for row in rows:
        assert re.fullmatch(r"\S+ +\d(?: \(novel\))? +\d+\.\d% +\d\.\d\d +-?\d+\.\d\d", row)
    assert last == "model digits version 1, scorer svm"
    assert note.startswith("distance: ")


def test_describe_prints_a_table(penult, photo_paths, bundle):
    """People get each descriptor's length and beginning, and the fingerprint that tells which ones compare."""
    code, out, err = penult("describe", *photo_paths[:2])
    header, *rows, last = out.splitlines()
    assert (code, err) == (0, "")
    assert header.split() == ["image", "numbers", "descriptor"]
    for row, path in zip(rows, photo_paths[:2], strict=True):
        assert row.split()[:2] == [str(path), "128"]
        assert row.endswith("…")
    assert last == f"model digits version 1, fingerprint {bundle.manifest.fingerprint}"


def test_classify_json_is_for_scripts(penult, photo_paths):
    """--json gives model, version and results in request order, each with image, label, score and probability."""
    code, out, err = penult("classify", *photo_paths[:4], "--json", "--scorer", "dense", "--top", "3")
    answer = json.loads(out)
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    assert (answer["model"], answer["version"], answer["scorer"]) == ("digits", 1, "dense")
    assert [result["image"] for result in answer["results"]] == [str(path) for path in photo_paths[:4]]
    for result in answer["results"]:
        assert set(result) == {"image", "label", "score", "probability", "classes", "novelty", "is_novel"}
        assert isinstance(result["score"], float)
        assert 0 <= result["probability"] <= 1
        assert len(result["classes"]) == 3
        assert result["classes"][0] == {name: result[name] for name in ("label", "score", "probability")}


def test_describe_json_is_for_scripts(penult, photo_paths, bundle):
    """--json gives each photo's descriptor as a list of numbers, and the model's fingerprint."""
    code, out, _ = penult("describe", *photo_paths[:2], "--json", "--model", "digits", "--version", "1")
    answer = json.loads(out)
    assert code == 0
    assert set(answer) == {"model", "version", "fingerprint", "results"}
    assert answer["fingerprint"] == bundle.manifest.fingerprint
    for result, path in zip(answer["results"], photo_paths[:2], strict=True):
        assert set(result) == {"image", "descriptor"}
        assert result["image"] == str(path)
        assert np.array(result["descriptor"]).shape == (128,)


@pytest.mark.parametrize("verb", ["classify", "describe"])
def test_a_failed_photo_is_an_error_in_its_place(penult, photo_paths, tmp_path, verb):
    """A photo that fails has an error with code and message, the others their answers; the exit code is 1."""
    text = tmp_path / "notes.txt"
    text.write_text("no photo")
    images = [photo_paths[0], text, tmp_path / "absent.png", photo_paths[1]]
    code, out, err = penult(verb, *images, "--json")
    results = json.loads(out)["results"]
    assert (code, err) == (1, "")
    assert [result["image"] for result in results] == [str(image) for image in images]
    assert ["error" in result for result in results] == [False, True, True, False]
    assert results[1]["error"]["code"] == "INVALID_ARGUMENT"
    assert results[2]["error"]["code"] == "NOT_FOUND"
    assert "JPEG, PNG or WebP" in results[1]["error"]["message"]
    assert "absent.png" in results[2]["error"]["message"]
    code, out, _ = penult(verb, *images)
    header, *rows = out.splitlines()[: 1 + len(images)]
    assert (code, header.split()[-1]) == (1, "error")
    at = header.index("error")
    assert [row[at:].partition(":")[0] for row in rows] == ["", "INVALID_ARGUMENT", "NOT_FOUND", ""]
    assert [row[:at].split() for row in rows][1:3] == [[str(text)], [str(tmp_path / "absent.png")]]


@pytest.mark.parametrize("verb", ["classify", "describe"])
def test_folders_are_walked(penult, photo_paths, tmp_path, verb):
    """A folder stands for the photos in it, many at a time, beside files named one by one; an empty one is told."""
    for place, path in enumerate(photo_paths):
        (tmp_path / "album" / f"{place % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "album" / f"{place % 3}" / f"{place:03d}.png")
    code, out, err = penult(verb, tmp_path / "album", photo_paths[0], "--json")
    results = json.loads(out)["results"]
    assert (code, err) == (0, "")
    wanted = [*sorted((tmp_path / "album").rglob("*.png")), photo_paths[0]]
    assert [result["image"] for result in results] == [str(path) for path in wanted]
    assert all("error" not in result for result in results)
    (tmp_path / "empty").mkdir()
    code, out, err = penult(verb, tmp_path / "empty")
    assert (code, out) == (1, "")
    assert "holds no JPEG, PNG, WebP" in one_line(err)


@pytest.mark.parametrize("verb", ["classify", "describe"])
def test_what_a_folder_holds_beside_photos_is_noted(penult, photo_paths, tmp_path, verb):
    """What systems add and files to convert are skipped and counted on stderr; a folder called x.jpg is a folder."""
    for name in ("x.jpg/1.jfif", "@eaDir/1.jpg", "__MACOSX/._1.jpg", "2.jxl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo_paths[0], tmp_path / name)
    code, out, err = penult(verb, tmp_path, "--json")
    assert [result["image"] for result in json.loads(out)["results"]] == [f"{tmp_path}/x.jpg/1.jfif"]
    assert code == 0
    assert err.splitlines() == [
        f"note: {tmp_path}: 1 JPEG XL file is left out; to make JPEGs with ImageMagick: find . -name '*.jxl' -exec mogrify "
        "-format jpg {} +",
        f"note: {tmp_path}: 2 files and folders are left out that systems add: @eaDir (1), __MACOSX (1)",
    ]
    assert penult(verb, tmp_path / "x.jpg")[0] == 0


@pytest.mark.parametrize("verb", [("classify",), ("describe",), ("lookup", "-c", "none"), ("index", "add", "none")])
def test_a_folder_without_photos_is_one_line(penult, tmp_path, verb):
    """Whatever asks, a folder without photos is one line, and no traceback."""
    code, out, err = penult(*verb, tmp_path)
    assert (code, out) == (1, "")
    assert f"{tmp_path} holds no JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC file" in one_line(err)


@pytest.mark.parametrize("verb", ["classify", "describe"])
def test_a_server_that_is_not_there_is_one_line(penult, photo_paths, verb):
    """Without a server: exit code 1, nothing on stdout, and one line that names the address and says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = f"127.0.0.1:{taken.getsockname()[1]}"
    code, out, err = penult(verb, photo_paths[0], "--timeout", "5", target=target)
    line = one_line(err)
    assert (code, out) == (1, "")
    assert target in line
    assert "penult serve" in line or "--target" in line


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--model", "absent"], "digits"), (["--model", "digts"], "did you mean digits?"), (["--version", "7"], "version 1"), (["--timeout", "0.0001"], ""),
     (["--target", "no.such.host.invalid:1"], "")],
)  # fmt: skip
def test_a_failed_request_is_one_line(penult, photo_paths, options, told):
    """A request without an answer gives exit code 1 and one line that says what there is instead."""
    code, out, err = penult("classify", photo_paths[0], *options)
    assert (code, out) == (1, "")
    assert told in one_line(err)


@pytest.mark.parametrize("verb", ["classify", "describe", "lookup -c c"])
def test_where_no_photo_can_be_read_nobody_is_asked(penult, tmp_path, verb):
    """Photos that are not there are errors in their places, with no server at all."""
    code, out, err = penult(*verb.split(), tmp_path / "absent.png", "--target", "127.0.0.1:1")
    assert (code, err) == (1, "")
    assert out.splitlines()[0].split() == ["image", "note" if verb.startswith("lookup") else "error"]
    assert out.splitlines()[1:] == [
        f"{tmp_path}/absent.png  NOT_FOUND: {tmp_path}/absent.png: No such file or directory"
    ]


@pytest.mark.parametrize("form", ["{}", "http://{}"])
def test_the_metrics_port_is_no_grpc_port(penult, server, photo_paths, monkeypatch, form):
    """Asked at its metrics port, the line says so, and where gRPC is: at the usual port if something answers there."""
    metrics = server.http.removeprefix("http://")
    code, out, err = penult("classify", photo_paths[0], "--target", form.format(metrics))
    assert (code, out) == (1, "")
    assert "it is penult's metrics port: the line `ready grpc=" in one_line(err)
    monkeypatch.setattr("penult.client.hints.DEFAULT_TARGET", server.target)
    _, _, err = penult("classify", photo_paths[0], "--target", form.format(metrics))
    assert one_line(err).endswith(f"it is penult's metrics port: gRPC is at {server.target}")


def test_a_target_without_a_port_is_explained(penult, photo_paths):
    """gRPC would ask at 443; the line says what to write."""
    _, _, err = penult("classify", photo_paths[0], "--target", "127.0.0.1", "--timeout", "20")
    assert "write HOST:PORT" in one_line(err)


@pytest.mark.parametrize(
    "options",
    [["--version", "-1"], ["--version", "4294967296"], ["--top", "-1"], ["--version", "one"], ["--scorer", "knn"],
     ["--timeout", "soon"], ["--nonsense"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_line_is_exit_2(penult, photo_paths, options):
    """Numbers and words that cannot be right end with exit code 2 and one line, not with the whole usage."""
    code, out, err = penult("classify", photo_paths[0], *options)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("penult classify: ")
    assert options[0] in line


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["classify"], ["check"]])
def test_missing_words_are_exit_2(penult, argv):
    """Without a verb, with an unknown one, or without what it needs, the exit code is 2."""
    code, out, _ = penult(*(argv or ["--target"]))
    assert (code, out) == (2, "")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["trian"], "penult: argument COMMAND: 'trian' is not one of inspect, train, .*; did you mean train[?]"),
        (["train", "x", "--svm", "lin"], "penult train: .* 'lin' is not one of auto, linear, rbf; did you mean linear[?]"),
        (["train", "x", "--frezee=3"], "penult train: unrecognized arguments: --frezee=3; did you mean --freeze[?]"),
        (["index", "lst"], "penult index: argument COMMAND: 'lst' is not one of add, .*; did you mean list[?]"),
        (["quantize", "a", "b", "--to", "float99"], r"penult quantize: .* 'float99' is not one of int8, fp16\."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_misspelt_word_is_met_with_the_nearest(penult, argv, told):
    """Verbs, choices and options: one line, exit code 2, and the word that was probably meant; else no guess."""
    code, out, err = penult(*argv, target=None)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert re.match(told, line)


def test_the_target_comes_from_the_environment(penult, server, photo_paths, monkeypatch):
    """PENULT_TARGET names the server where --target does not."""
    monkeypatch.setenv("PENULT_TARGET", server.target)
    assert penult("classify", photo_paths[0], target=None)[0] == 0


def test_check_says_what_was_checked(penult, models, bundle):
    """A good bundle gives exit code 0 and one line with name, version and what was proved."""
    code, out, err = penult("check", models / "digits", "--device", "cpu")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    assert out.startswith("digits version 1: good. All digests match; goldens replayed on CPUExecutionProvider")
    assert "Not signed" in out


def test_check_json_is_for_scripts(penult, models, bundle):
    """--json gives the same facts."""
    code, out, _ = penult("check", models / "digits", "--version", "1", "--json", "--device", "cpu")
    answer = json.loads(out)
    assert code == 0
    assert (answer["ok"], answer["model"], answer["version"]) == (True, "digits", 1)
    assert answer["fingerprint"] == bundle.manifest.fingerprint
    assert answer["signed"] is False
    assert 0 <= answer["golden_difference"] < 1e-4


def test_check_refuses_a_damaged_bundle(penult, damaged):
    """One changed byte gives exit code 1, with the file and the reason, as a line or as JSON."""
    code, out, err = penult("check", damaged)
    assert (code, out) == (1, "")
    assert "model.onnx" in one_line(err)
    assert "(FILE_DIGEST)" in err
    code, out, err = penult("check", damaged, "--json")
    answer = json.loads(out)
    assert (code, err) == (1, "")
    assert (answer["ok"], answer["reason"]) == (False, "FILE_DIGEST")
    assert "model.onnx" in answer["message"]


@pytest.mark.parametrize(("options", "reason"), [(["--version", "9"], "VERSION_NOT_FOUND"), ([], "MODEL_NOT_FOUND")])
def test_check_of_what_is_not_there(penult, models, tmp_path, options, reason):
    """A version or model that does not exist gives exit code 1 and one line."""
    code, out, err = penult("check", models / "digits" if options else tmp_path / "absent", *options)
    assert (code, out) == (1, "")
    assert f"({reason})" in one_line(err)


def test_check_of_broken_golden_photos_is_a_reason(penult, publish_brightness, tmp_path):
    """A golden photo that cannot be decoded is a fault of the bundle: exit code 1 and a reason, also as JSON."""
    publish_brightness(tmp_path, goldens={"images": (b"text", b"text")})
    code, out, _ = penult("check", tmp_path / "light", "--json")
    assert code == 1
    assert json.loads(out)["reason"].startswith("GOLDEN")


def test_a_process_ends_with_the_verbs_code(run_python, photo_paths, server):
    """`python -m penult.cli` ends with the code of main()."""
    good = run_python("-m", "penult.cli", "classify", "--target", server.target, str(photo_paths[0]))
    bad = run_python("-m", "penult.cli", "classify", "--target", server.target, "absent.png")
    assert (good.returncode, bad.returncode) == (0, 1)
    assert "absent.png" in bad.stdout


def test_a_missing_extra_is_one_line(run_python):
    """Where the serving extra is not installed, the verbs that need it say which to install."""
    code = """
import sys
sys.modules["onnxruntime"] = None
from penult import cli
raise SystemExit(cli.main(["check", "models/absent"]))
"""
    result = run_python("-c", code)
    assert result.returncode == 1
    assert re.fullmatch(
        r"penult: penult check needs onnxruntime: in .* source, run pip install '\.\[serve,cpu\]' or pip .*\n",
        result.stderr,
    )


@pytest.mark.server
@pytest.mark.parametrize("words", [("train",), ("serve", "--models")], ids=" ".join)
def test_what_the_file_system_refuses_is_one_line(run_python, words):
    """A name that no file can have gives exit code 1 and ends with a line of the name, the reason and what to do."""
    too_long = "x" * 300
    result = run_python("-m", "penult.cli", *words, too_long)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == f"penult: {too_long}: File name too long; give a shorter name"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "x"), OSError("text"), KeyError("x")], ids=repr)
def test_a_bug_shows_itself(monkeypatch, error):
    """What neither the user nor the machine did keeps its traceback."""

    def fail(arguments):
        raise error

    monkeypatch.setattr("penult.cli.check.run", fail)
    with pytest.raises(type(error)):
        cli.main(["check", "models/digits"])


@pytest.mark.parametrize("verb", ["classify", "describe", "check", "serve", "train"])
def test_every_verb_has_help(penult, verb):
    """--help of each verb ends with exit code 0 and shows defaults."""
    code, out, _ = penult(verb, "--help", target=None)
    assert code == 0
    assert f"usage: penult {verb}" in out


def test_help_is_quick(run_python):
    """`penult --help` imports none of the large libraries."""
    code = """
import sys
from penult import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "onnxruntime", "grpc", "sklearn", "numpy"}))
"""
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_gets_no_traceback(server, photo_paths):
    """`penult classify … | head` ends quietly where nobody reads any more."""
    command = [sys.executable, "-m", "penult.cli", "classify", *map(str, photo_paths), "--target", server.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_products_run_on_one_thread(run_python):
    """OpenBLAS is told before NumPy comes in: its threads would spin beside the model's."""
    code = """
import os, sys, types
os.environ.pop("OPENBLAS_NUM_THREADS", None)
from penult import cli

def serve(config):
    import numpy, threadpoolctl
    print([pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"])
    return 0

server = sys.modules["penult.service.process.server"] = types.ModuleType("server")
server.serve = serve
cli.main(["serve", "--models", "."])
"""
    result = run_python("-c", code)
    assert result.stdout == "[1]\n", result.stderr
