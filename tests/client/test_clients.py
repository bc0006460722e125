"""The Python client, plain and asyncio: photos in any form, failures in place, order kept over many messages."""

import asyncio
import inspect
import io
import socket
import sys
from concurrent import futures

import grpc
import numpy as np
import pytest
from PIL import Image

from penult.bundle.preprocess import crop_encoded
from penult.client import AsyncClient, Classification, Client, Crop, ItemFailure, RequestFailed, photos_in
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc


@pytest.fixture(params=["plain", "asyncio"])
def ask(request, server):
    """Call a method of either client: ask("classify", photos, model="digits"), ask(…, target=…, timeout_s=…)."""

    def plain(method: str, *arguments, target: str = server.target, timeout_s: float = 30.0, **named):
        with Client(target, timeout_s) as client:
            return getattr(client, method)(*arguments, **named)

    def awaited(method: str, *arguments, target: str = server.target, timeout_s: float = 30.0, **named):
        async def whole():
            async with AsyncClient(target, timeout_s) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(whole())

    return {"plain": plain, "asyncio": awaited}[request.param]


@pytest.fixture
def unused_port():
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_photos_come_as_paths_bytes_or_pixels(ask, photo_paths):
    """The same photo as text path, Path, file bytes and pixels gets the same answer."""
    path = photo_paths[42]
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    answer = ask("classify", [str(path), path, path.read_bytes(), pixels], model="digits")
    assert (answer.model, answer.version, len(answer.fingerprint)) == ("digits", 1, 64)
    assert len({result.label for result in answer.results}) == 1
    scores = [result.score for result in answer.results]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-4)


def test_a_crop_is_answered_as_the_photo_it_was_cut_from(ask, photo_paths, bundle):
    """What the network would look at, sent ready, gives the photo's own descriptor bit for bit."""
    crop = Crop(crop_encoded(photo_paths[0].read_bytes(), bundle.manifest.preprocess))
    from_photo, from_crop = ask("describe", [photo_paths[0], crop], model="digits").results
    assert np.array_equal(from_photo, from_crop)


def test_pixels_that_are_not_contiguous_are_sent_right(ask, photo_paths):
    """A view that runs backwards through memory is sent as the picture that it shows."""
    pixels = np.asarray(Image.open(photo_paths[10]).convert("RGB"))
    backwards = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    assert not backwards.flags["C_CONTIGUOUS"]
    found = ask("describe", [pixels, backwards]).results
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_a_photo_that_cannot_be_used_fails_in_its_place(ask, photo_paths, tmp_path):
    """Unreadable files and undecodable bytes give ItemFailure where they stood; the others are answered."""
    images = [photo_paths[0], tmp_path / "absent.png", b"text", tmp_path, photo_paths[1]]
    for method in ("classify", "describe"):
        results = ask(method, images).results
        assert [isinstance(result, ItemFailure) for result in results] == [False, True, True, True, False]
        assert (results[1].code, results[1].reason) == ("NOT_FOUND", "FILE_UNREADABLE")
        assert "absent.png" in results[1].message
        assert (results[2].code, results[2].reason) == ("INVALID_ARGUMENT", "IMAGE_UNKNOWN_FORMAT")
        assert results[3].reason == "FILE_UNREADABLE"


def test_a_photo_larger_than_any_message_fails_alone(ask, photos):
    """A photo that no message can carry is an ItemFailure in its place; the others are answered."""
    results = ask("classify", [photos[0], bytes((64 << 20) + 1), photos[1]]).results
    assert [isinstance(result, ItemFailure) for result in results] == [False, True, False]


def test_nothing_readable_is_an_answer_of_failures(ask, tmp_path):
    """When no photo can be read, there is nothing to ask and every result is a failure."""
    answer = ask("classify", [tmp_path / "a", tmp_path / "b"], model="digits")
    assert [result.reason for result in answer.results] == ["FILE_UNREADABLE"] * 2
    assert ask("classify", []).results == ()


@pytest.mark.parametrize("scorer", ["dense", "svm"])
def test_many_photos_are_chunked_and_come_back_in_order(ask, photos, scorer, tmp_path):
    """Two hundred photos with gaps, more than one message holds, come back in order, as one by one."""
    images = [*photos, tmp_path / "absent", *photos[:99]]
    answer = ask("classify", images, scorer=scorer)
    assert answer.scorer == scorer
    assert isinstance(answer.results[100], ItemFailure)
    labels = [getattr(result, "label", None) for result in answer.results]
    assert labels[:99] == labels[101:]
    alone = [ask("classify", [photo], scorer=scorer).results[0].label for photo in photos[60:70]]
    assert labels[60:70] == alone


class Recorder(penult_pb2_grpc.PenultServiceServicer):
    """Notes the requests, and answers each photo with its own first byte; says it is version 7."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.requests: list = []

    def Classify(self, request, context):
        """Answer with the photos' first bytes."""
        self.requests.append(request)
        labels = [str(image.encoded[0]) for image in request.images]
        results = [pb.ClassifyResult(classification=pb.Classification(label=label)) for label in labels]
        return pb.ClassifyResponse(model={"name": "m", "version": 7}, scorer=pb.SCORER_DENSE, results=results)


@pytest.fixture
def recorder():
    """A gRPC server that records: (servicer, target)."""
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    servicer = Recorder()
    penult_pb2_grpc.add_PenultServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_messages_stay_small_and_ask_one_version(ask, recorder):
    """A message holds at most 64 photos and 16 MiB; after the first answer all ask the version that gave it."""
    servicer, target = recorder
    images = [bytes([n]) * 10 for n in range(130)] + [bytes([n]) * (5 << 20) for n in range(130, 137)]
    answer = ask("classify", images, target=target)
    assert [result.label for result in answer.results] == [str(n) for n in range(137)]
    assert [len(request.images) for request in servicer.requests] == [64, 64, 5, 3, 1]
    assert max(request.ByteSize() for request in servicer.requests) < 17 << 20
    assert [request.model.version for request in servicer.requests] == [0, 7, 7, 7, 7]
    assert {request.model.name for request in servicer.requests[1:]} == {"m"}


def test_descriptors_and_classes_are_numpy_and_plain(ask, photos, bundle):
    """describe gives float32 vectors; include_descriptor gives the same beside the classes; top_k lists classes."""
    described = ask("describe", photos[:3])
    assert {(result.dtype, result.shape) for result in described.results} == {(np.dtype(np.float32), (128,))}
    assert described.fingerprint == bundle.manifest.fingerprint
    classified = ask("classify", photos[:3], include_descriptor=True, top_k=3)
    for result, descriptor in zip(classified.results, described.results, strict=True):
        assert isinstance(result, Classification)
        np.testing.assert_allclose(result.descriptor, descriptor, atol=1e-4)
        assert result.classes[0].label == result.label
        assert len(result.classes) == 3
    assert ask("classify", photos[:1]).results[0].descriptor is None


def test_scoring_descriptors_gives_the_svms_classes(ask, photos):
    """score() on described photos names the classes that classify() names with the SVM."""
    descriptors = np.stack(ask("describe", photos[:20]).results)
    scored = ask("score", descriptors, model="digits", version=1)
    classified = ask("classify", photos[:20], scorer="svm")
    assert (scored.scorer, scored.model, scored.version) == ("svm", "digits", 1)
    assert [result.label for result in scored.results] == [result.label for result in classified.results]


def test_models_are_told(ask, bundle):
    """get_model and list_models tell what is served."""
    (listed,) = ask("list_models")
    assert listed == ask("get_model", "digits")
    assert tuple(listed.classes) == bundle.manifest.classes


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [("classify", [[b"x"]], {"model": "absent"}), ("describe", [[b"x"]], {"model": "absent"}),
     ("score", [np.zeros((1, 128))], {"model": "absent"}), ("get_model", ["absent"], {})],
)  # fmt: skip
def test_a_failed_request_tells_code_reason_and_id(ask, method, arguments, named):
    """A request without an answer raises RequestFailed with gRPC's code, the stable reason and the server's id."""
    with pytest.raises(RequestFailed) as caught:
        ask(method, *arguments, **named)
    error = caught.value
    assert (error.code, error.reason, len(error.request_id)) == ("NOT_FOUND", "MODEL_UNKNOWN", 16)
    assert "digits" in error.message
    assert str(error) == f"NOT_FOUND: {error.message}"


def test_a_server_that_is_not_there_is_unavailable(ask, unused_port, photos):
    """Without a server the client raises RequestFailed UNAVAILABLE, soon."""
    with pytest.raises(RequestFailed) as caught:
        ask("classify", photos[:1], target=f"127.0.0.1:{unused_port}", timeout_s=5)
    assert (caught.value.code, caught.value.reason, caught.value.request_id) == ("UNAVAILABLE", "", "")


def test_the_timeout_is_kept(ask, photos):
    """A request that takes longer than timeout_s raises RequestFailed DEADLINE_EXCEEDED."""
    with pytest.raises(RequestFailed) as caught:
        ask("classify", photos[:64], timeout_s=0.001)
    assert caught.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
    ids=lambda pixels: f"{pixels.dtype}{list(pixels.shape)}",
)
def test_pixels_of_another_kind_are_a_programming_error(ask, pixels):
    """Arrays that are not uint8 RGB raise ValueError: sent as they are, they would be another picture."""
    with pytest.raises(ValueError, match="pixels must be uint8"):
        ask("classify", [pixels])


def test_an_unknown_scorer_is_a_programming_error(ask, photos):
    """A scorer that does not exist raises ValueError before anything is sent."""
    with pytest.raises(ValueError, match="'knn' is not dense, svm, neighbours, novelty or None"):
        ask("classify", photos[:1], scorer="knn")


@pytest.fixture(params=["plain", "asyncio"])
def ask_many(request, server):
    """Walk along what either client says of many photos: ask_many("classify_many", folder, …) returns a list."""

    def plain(method: str, *arguments, **named):
        with Client(server.target) as client:
            return list(getattr(client, method)(*arguments, **named))

    def awaited(method: str, *arguments, **named):
        async def whole():
            async with AsyncClient(server.target) as client:
                return [each async for each in getattr(client, method)(*arguments, **named)]

        return asyncio.run(whole())

    return {"plain": plain, "asyncio": awaited}[request.param]


@pytest.fixture(scope="module")
def album(photos, tmp_path_factory):
    """A folder of a hundred photos in two folders, with a text, a hidden file and a broken photo among them."""
    folder = tmp_path_factory.mktemp("album")
    for place, photo in enumerate(photos):
        path = folder / f"part{place // 50}" / f"{place:03d}.{'PNG' if place % 2 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.png").write_bytes(photos[0])
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "1.png").write_bytes(photos[0])
    (folder / "part0" / "049b.jpg").write_bytes(b"no photo")
    return folder


def test_a_folder_is_named_photo_by_photo(ask, ask_many, album, photos):
    """Every photo below a folder is answered in order of its name, in batches; a broken one fails in its place."""
    found = ask_many("classify_many", album, scorer="svm", in_flight=3)
    assert [each.photo for each in found] == photos_in(album)
    assert [each.photo.name for each in found if isinstance(each.result, ItemFailure)] == ["049b.jpg"]
    labels = [each.result.label for each in found if not isinstance(each.result, ItemFailure)]
    assert labels == [result.label for result in ask("classify", photos, scorer="svm").results]
    assert {(each.model, each.version, each.scorer) for each in found} == {("digits", 1, "svm")}


def test_many_descriptors(ask, ask_many, photos):
    """A list works as a folder does, and descriptors as classes do."""
    found = ask_many("describe_many", photos[:70])
    np.testing.assert_array_equal([each.result for each in found], ask("describe", photos[:70]).results)
    assert [each.photo for each in found] == photos[:70]


def test_a_bar_shows_how_far_it_is(ask_many, album, capsys):
    """With progress=True a bar on standard error counts photos up to all of them; without, nothing is shown."""
    ask_many("classify_many", album, progress=True)
    assert "/101 [" in capsys.readouterr().err
    ask_many("classify_many", album)
    assert capsys.readouterr().err == ""


def test_a_folder_without_photos_is_said(ask_many, tmp_path):
    """An empty folder, and one that is not there, are errors that name it."""
    with pytest.raises(FileNotFoundError, match="holds no JPEG, PNG, WebP"):
        ask_many("classify_many", tmp_path)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        ask_many("classify_many", tmp_path / "absent")


def test_many_photos_end_with_the_first_failed_request(ask_many, photos):
    """A request that fails as a whole is raised, and what was still to come is not asked."""
    with pytest.raises(RequestFailed, match="NOT_FOUND"):
        ask_many("classify_many", photos, model="absent")


def test_whoever_stops_early_leaves_nothing_behind(server, photos):
    """Taking three answers and no more ends at once."""
    with Client(server.target) as client:
        walk = client.classify_many(photos * 20)
        assert len([next(walk) for _ in range(3)]) == 3
        walk.close()
        assert client.classify(photos[:1]).version == 1


TYPED = """
from collections.abc import Sequence
from penult.client import AsyncClient, Classification, Client, ItemFailure, PhotoAnswer

def label(result: Classification | ItemFailure) -> str:
    return result.label if isinstance(result, Classification) else result.message

def names(folder: str) -> Sequence[str]:
    with Client(["a:1", "b:2"], timeout_s=1.5, retries=2) as client:
        lengths = [len(d) for d in client.describe([b""]).results if not isinstance(d, ItemFailure)]
        answers: list[PhotoAnswer[Classification]] = list(client.classify_many(folder, progress=True))
        return [label(each.result) for each in answers] + [str(lengths), label(client.classify([folder]).results[0])]

async def more(client: AsyncClient) -> str:
    async for each in client.classify_many("photos"):
        return label(each.result)
    return (await client.classify(["photo"], scorer="svm")).model
"""
MISTYPED = """
from penult.client import Client
Client("a:1").classify("photo.jpg", top_k="five").results[0].label
"""


@pytest.mark.server
def test_types_are_complete_for_who_uses_it(tmp_path, run_python):
    """mypy, strict, takes a caller's file outside the project, and finds the mistakes in another."""
    for name, text in (("good.py", TYPED), ("bad.py", MISTYPED)):
        (tmp_path / name).write_text(text)
    command = ("-m", "mypy", "--strict", "--no-incremental", "--config-file=", "--python-executable", sys.executable)
    good = run_python(*command, str(tmp_path / "good.py"))
    assert good.returncode == 0, good.stdout + good.stderr
    bad = run_python(*command, str(tmp_path / "bad.py"))
    assert 'incompatible type "str"; expected "int"' in bad.stdout
    assert "union-attr" in bad.stdout


def test_both_clients_have_the_same_methods():
    """AsyncClient offers what Client offers, with the same parameters."""
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            other = getattr(AsyncClient, name)
            has, wanted = inspect.signature(other), inspect.signature(method)
            assert has.parameters == wanted.parameters
            if name.endswith("_many"):  # these are walked along, `async for` there
                assert str(has.return_annotation).replace("AsyncIterator", "Iterator") == str(wanted.return_annotation)
            else:
                assert inspect.iscoroutinefunction(other)
                assert has == wanted


FORBIDDEN = (
    "onnxruntime",
    "PIL",
    "sklearn",
    "torch",
    "starlette",
    "prometheus_client",
    "uvicorn",
    "grpc_health",
    "grpc_reflection",
    "tqdm",
)


def test_the_base_install_is_enough(run_python, server, photo_paths):
    """Where nothing but the base install can be imported, the client and `penult classify` work."""
    code = f"""
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Forbid())
from penult import cli, client
with client.Client({server.target!r}) as c:
    print(len(c.describe([{str(photo_paths[0])!r}]).results[0]))
raise SystemExit(cli.main(["classify", "--target", {server.target!r}, {str(photo_paths[0])!r}]))
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "128"
    assert "model digits version 1" in result.stdout
