"""Class maps over every protocol: they add up to the scores, lie on the upright photo, and are refused with a reason."""

import io
import json
from dataclasses import replace

import grpc
import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

from penult import cli
from penult.bundle.class_map import area_of
from penult.bundle.reader import read_bundle
from penult.bundle.writer import publish
from penult.client import Client, Crop, MapsWanted, RequestFailed
from penult.v1 import penult_pb2 as pb
from penult.v1.penult_pb2_grpc import PenultServiceStub

EXACT = MapsWanted(top=3, is_exact=True)


@pytest.fixture(scope="module")
def running(bundle, models, tmp_path_factory, start_server):
    """A server of digits, and of `older`, the same without what class maps need."""
    folder, version = tmp_path_factory.mktemp("maps"), models / "digits" / "1"
    files = {name: (version / name).read_bytes() for name in bundle.manifest.files}
    publish(folder / "digits", bundle.manifest, files)
    network = onnx.load_from_string(files["model.onnx"])
    del network.graph.output[2]
    files = {name: data for name, data in files.items() if name != "dense_head.npz"}
    files["model.onnx"] = network.SerializeToString()
    publish(folder / "older", replace(bundle.manifest, class_maps=None), files)
    return start_server(folder, "--http")


def totals(result) -> list[float]:
    """What the maps of a result add up to."""
    return [float(each.values.sum()) + each.offset for each in result.class_maps]


@pytest.mark.parametrize("scorer", ["dense", "svm"])
def test_maps_add_up_to_the_scores(running, photo_paths, scorer):
    """The maps of the three best classes sum to their scores, exactly or as bytes, in one request and on a stream."""
    photos = photo_paths[:12]
    with Client(running.target) as client:
        exact = client.classify(photos, model="digits", scorer=scorer, maps=EXACT).results
        coarse = client.classify(photos, model="digits", scorer=scorer, maps=MapsWanted(top=3)).results
        plain = client.classify(photos, model="digits", scorer=scorer).results
    for one, other, without in zip(exact, coarse, plain, strict=True):
        assert without.class_maps == ()
        assert [each.label for each in one.class_maps] == [each.label for each in one.classes[:3]]
        scores = [each.score for each in without.classes[:3]]
        assert np.allclose(totals(one), scores, atol=1e-4)
        assert np.allclose(totals(other), scores, atol=1e-4)
        for fine, rough in zip(one.class_maps, other.class_maps, strict=True):
            assert fine.values.shape == (8, 8)
            assert np.abs(fine.values - rough.values).max() <= 1.001 * np.ptp(fine.values) / 255
    request = pb.ClassifyRequest(
        model=pb.ModelSelector(name="digits"), images=[pb.Image(encoded=photos[0].read_bytes())],
        scorer=pb.Scorer.Value(f"SCORER_{scorer.upper()}"), include_map=pb.MapQuery(format=pb.MAP_FORMAT_FLOAT32),
    )  # fmt: skip
    with grpc.insecure_channel(running.target) as channel:
        (answer,) = PenultServiceStub(channel).StreamClassify(iter([request]))
    (found,) = answer.results[0].classification.class_maps
    right = exact[0].class_maps[0].values.ravel()
    assert np.allclose(np.frombuffer(found.values, "<f4"), right, atol=1e-5)


def test_classes_may_be_named(running, photo_paths):
    """Maps come in the order of the labels, whatever their rank; an unknown or repeated label fails the request."""
    with Client(running.target) as client:
        result = client.classify(
            photo_paths[:1], model="digits", top_k=10, maps=MapsWanted(("7", "0"), is_exact=True)
        ).results[0]
        scores = {each.label: each.score for each in result.classes}
        assert [each.label for each in result.class_maps] == ["7", "0"]
        assert np.allclose(totals(result), [scores["7"], scores["0"]], atol=1e-4)
        for labels in (("x",), ("1", "1")):
            with pytest.raises(RequestFailed) as caught:
                client.classify(photo_paths[:1], model="digits", maps=MapsWanted(labels))
            assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "MAP_LABEL")


def test_a_map_lies_on_the_upright_photo(running, bundle):
    """The area is in pixels of the upright photo: of one turned by EXIF, of pixels, and of a crop."""
    pixels = np.random.default_rng(1).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for extra in ({}, {"exif": exif}):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", **extra)
        files.append(buffer.getvalue())
    spec = bundle.manifest.preprocess
    with Client(running.target) as client:
        found = client.classify([*files, pixels, Crop(pixels[:32, :32])], model="digits", maps=EXACT).results
    areas = [each.class_maps[0].area for each in found]
    expected = [area_of(spec, 600, 400), area_of(spec, 400, 600), area_of(spec, 600, 400), (0, 0, 32, 32)]
    assert np.allclose(areas, expected, atol=1e-3)


def test_models_say_what_they_have(running, photo_paths, bundle):
    """GetModel lists the scorers with maps, or the reason; a request for maps that are not there says it too."""
    with Client(running.target) as client:
        maps, none = (client.get_model(name).class_maps for name in ("digits", "older"))
        assert (list(maps.scorers), list(maps.missing), maps.height) == ([pb.SCORER_DENSE, pb.SCORER_SVM], [], 8)
        assert list(none.scorers) == []
        assert {each.scorer for each in none.missing} == {pb.SCORER_DENSE, pb.SCORER_SVM}
        assert all("train or import the model again" in each.reason for each in none.missing)
        for model, scorer in (("older", "dense"), ("digits", "neighbours")):
            with pytest.raises(RequestFailed) as caught:
                client.classify(photo_paths[:1], model=model, scorer=scorer, maps=EXACT)
            assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "CLASS_MAPS_MISSING")


def test_the_open_inference_protocol_has_an_output_for_it(running, crops):
    """`class_map` is in the metadata and returned only if it is named: the map of the best class."""

    def ask(**more: object) -> dict:
        body = {
            "inputs": [
                {
                    "name": "pixels",
                    "datatype": "UINT8",
                    "shape": list(crops[:3].shape),
                    "data": crops[:3].ravel().tolist(),
                }
            ]
        }
        return httpx.post(f"{running.http}/v2/models/digits/infer", json=body | more).raise_for_status().json()

    with Client(running.target) as client:
        expected = client.classify(
            [Crop(crop) for crop in crops[:3]], model="digits", maps=MapsWanted(is_exact=True)
        ).results
    (output,) = ask(outputs=[{"name": "class_map"}])["outputs"]
    assert (output["shape"], output["datatype"]) == ([3, 8, 8], "FP32")
    right = [each.class_maps[0].values for each in expected]
    assert np.allclose(np.reshape(output["data"], (3, 8, 8)), right, atol=1e-5)
    assert "class_map" not in {each["name"] for each in ask()["outputs"]}
    outputs = {name: httpx.get(f"{running.http}/v2/models/{name}").json()["outputs"] for name in ("digits", "older")}
    assert {"name": "class_map", "datatype": "FP32", "shape": [-1, 8, 8]} in outputs["digits"]
    assert "class_map" not in {each["name"] for each in outputs["older"]}


def test_penult_classify_draws_it(running, photo_paths, tmp_path, capsys):
    """--map writes a drawing of one photo, or of several into a folder, and --json has the values."""
    call = ["classify", "--model", "digits", "--target", running.target, "--json", "--map"]
    photos = [str(path) for path in photo_paths[:2]]
    assert cli.main([*call, str(tmp_path / "out.png"), photos[0]]) == 0
    (value,) = json.loads(capsys.readouterr().out)["results"]
    (found,) = value["class_maps"]
    assert found["label"] == value["label"]
    assert np.isclose(np.sum(found["values"]) + found["offset"], value["score"], atol=1e-4)
    with Image.open(tmp_path / "out.png") as drawn:
        assert min(drawn.size) > 100
    assert cli.main([*call, str(tmp_path / "maps"), *photos]) == 0
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_maps_that_do_not_add_up_are_refused_at_load(bundle, models, tmp_path, capsys):
    """A dense head of another network fails `penult check`, as it would fail a server that loads it."""
    version = models / "digits" / "1"
    files = {name: (version / name).read_bytes() for name in bundle.manifest.files}
    head = read_bundle(models / "digits").dense_head
    files["dense_head.npz"] = replace(head, weights=head.weights * np.float32(1.01)).to_bytes()
    publish(tmp_path / "digits", bundle.manifest, files)
    assert cli.main(["check", str(tmp_path / "digits")]) == 1
    assert "class maps of dense differ from its scores" in capsys.readouterr().err
