"""A model of one class, served: the same answer by every door, and metrics that agree with it."""

import json
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from penult import cli
from penult.bundle.reader import read_bundle
from penult.client import Client, ItemFailure, RequestFailed
from penult.v1 import penult_pb2 as pb

_TRITON = """
import json, sys
from pathlib import Path
import numpy as np
import tritonclient.grpc as triton
photo = triton.InferInput("image", [2], "BYTES")
photo.set_data_from_numpy(np.array([Path(name).read_bytes() for name in sys.argv[2:]], dtype=object))
with triton.InferenceServerClient(sys.argv[1]) as client:
    names = [output.name for output in client.get_model_metadata("zero").outputs]
    answer = client.infer("zero", [photo])
    print(json.dumps({"names": names, "labels": [text.decode() for text in answer.as_numpy("labels")],
                      **{name: answer.as_numpy(name).tolist() for name in ("novelty", "is_novel", "probabilities")}}))
"""


@pytest.fixture(scope="module")
def running(one_class, start_server):
    """A server of both versions of the zeros."""
    return start_server(one_class, "--http", "--pin", "zero=1,zero=2")


@pytest.fixture
def client(running):
    """A client of it."""
    with Client(running.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def pair(zeros, tmp_path_factory) -> list[Path]:
    """A photo of the class, and one of noise."""
    from PIL import Image

    noise = tmp_path_factory.mktemp("noise") / "noise.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(noise)
    own = sorted((zeros / "train" / "0").iterdir())[3]
    return [own, noise]


@pytest.mark.parametrize("version", [1, 2])
def test_an_outlier_is_novel_and_an_ordinary_photo_is_not(client, pair, version, one_class):
    """Label, is_novel, score and probability of both, by the measure of the bundle; Score gives them too."""
    answer = client.classify(pair, version=version, include_descriptor=True)
    ordinary, outlier = answer.results
    assert answer.scorer == "novelty"
    assert (ordinary.label, ordinary.is_novel, outlier.label, outlier.is_novel) == ("0", False, "0", True)
    baseline = read_bundle(one_class / "zero", version).baseline
    assert answer.novelty_threshold == pytest.approx(baseline.threshold)
    for result in answer.results:
        assert result.score == pytest.approx(answer.novelty_threshold - result.novelty, abs=1e-6)
        assert result.probability == baseline.probability(np.float32([result.novelty]))[0]
        assert len(result.classes) == 1
    scored = client.score(np.stack([result.descriptor for result in answer.results]), version=version)
    assert scored.scorer == "novelty"
    assert [(s.novelty, s.is_novel) for s in scored.results] == [(r.novelty, r.is_novel) for r in answer.results]
    model = client.get_model(version=version)
    assert ([*model.scorers], model.default_scorer, [*model.classes]) == ([pb.SCORER_NOVELTY], pb.SCORER_NOVELTY, ["0"])


def test_other_scorers_are_refused(client, pair):
    """A model of one class has neither a dense head nor class scores."""
    for scorer in ("dense", "svm"):
        with pytest.raises(RequestFailed, match=r"has no .* scorer; ask for novelty"):
            client.classify(pair, scorer=scorer)


def test_neither_fails_beside_a_broken_image(client, pair):
    """An invalid image fails alone, as with any scorer."""
    good, bad = client.classify([pair[0], b"nothing"]).results
    assert isinstance(bad, ItemFailure)
    assert not good.is_novel


def test_the_open_inference_protocol_answers_the_same(running, client, pair, triton_python):
    """tritonclient, and JSON over HTTP, get labels, novelty, is_novel and probabilities."""
    told = client.classify(pair).results
    done = subprocess.run(
        [triton_python, "-P", "-c", _TRITON, running.target, *map(str, pair)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["names"] == ["probabilities", "novelty", "is_novel", "descriptor", "labels"]
    assert found["labels"] == ["0", "0"]
    assert found["is_novel"] == [False, True]
    assert found["novelty"] == pytest.approx([result.novelty for result in told], abs=1e-6)
    assert found["probabilities"] == [[pytest.approx(result.probability)] for result in told]
    crops = np.stack([np.asarray(_rgb(path)) for path in pair])
    request = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": crops.ravel().tolist()}],
               "outputs": [{"name": "is_novel"}]}  # fmt: skip
    (output,) = httpx.post(f"{running.http}/v2/models/zero/infer", json=request).json()["outputs"]
    assert (output["datatype"], output["shape"], output["data"][1]) == ("BOOL", [2], True)
    request["outputs"] = [{"name": "logits"}]
    refused = httpx.post(f"{running.http}/v2/models/zero/infer", json=request)
    assert (refused.status_code, "there is no output 'logits'" in refused.text) == (400, True)


def _rgb(path: Path):
    from PIL import Image

    return Image.open(path).convert("RGB").resize((32, 32))


def test_the_page_and_the_command_line_show_it(running, pair, capsys):
    """/try and `penult classify` answer; the table marks the outlier."""
    tried = httpx.post(f"{running.http}/try", params={"model": "zero"}, content=pair[1].read_bytes(),
                       headers={"content-type": "application/octet-stream"}).json()  # fmt: skip
    assert (tried["default_scorer"], tried["is_novel"], list(tried["scorers"])) == ("novelty", True, ["novelty"])
    assert cli.main(["classify", "--target", running.target, *map(str, pair)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["0 (novel)" in line for line in lines[1:3]] == [False, True]
    assert "probability: share of held-out photos of the class at least as far" in lines[-1]


def test_metrics_count_novelty_and_confidence(running, client, pair, samples):
    """Two photos raise answers, novel photos, novelty and confidence by what was answered."""
    before = samples(running.http)
    results = client.classify(pair, version=1).results
    gained = {key: value - before.get(key, 0) for key, value in samples(running.http).items()}
    model = ("model", "zero"), ("version", "1")
    assert gained["penult_novel_total", *model] == 1
    assert gained["penult_novelty_ratio_count", *model] == 2
    told = sum(result.probability for result in results)
    (summed,) = [v for k, v in gained.items() if k[0] == "penult_confidence_sum" and set(model) <= set(k[1:])]
    assert summed == pytest.approx(told)


def test_goldens_find_another_novelty(one_class, tmp_path):
    """A baseline with other reference photos is valid, but its novelty is not the recorded one."""
    from dataclasses import replace

    from penult.bundle.errors import BundleError
    from penult.service.models.loader import Placement, load

    bundle = read_bundle(one_class / "zero", 1)
    turned = np.roll(bundle.baseline.references, 1, axis=1)
    with pytest.raises(BundleError) as caught:
        load(replace(bundle, baseline=replace(bundle.baseline, references=turned)), Placement("cpu"))
    assert caught.value.reason == "GOLDEN_VALUES"
