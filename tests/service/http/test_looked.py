"""Where it looked, on the status page: maps of the tried photo that add up to its scores, drawn over the photo."""

import base64
import json

import httpx
import pytest
from tests.fixtures.browser import CHROMIUM, Browser

from penult.bundle.manifest import MANIFEST_NAME
from penult.bundle.map_support import OLDER

PHOTO = {"content-type": "application/octet-stream"}
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def photo(digits) -> bytes:
    """A test photo of 8 x 8 pixels."""
    return sorted((digits / "test" / "3").iterdir())[0].read_bytes()


@pytest.fixture(scope="module")
def without_maps(copy_model, start_server, tmp_path_factory):
    """A server of a bundle of before class maps."""
    return start_server(changed(copy_model, tmp_path_factory.mktemp("before"), None), "--lookup", "off")


def changed(copy_model, folder, support):
    """Return a model repository whose manifest has another entry on class maps; None has none."""
    path = copy_model(folder) / "1" / MANIFEST_NAME
    values = json.loads(path.read_text())
    values["class_maps"] = support
    if support is None:
        del values["class_maps"]
    path.write_text(json.dumps(values))
    return folder


def tried(server, photo: bytes) -> dict:
    """Return what /try answers."""
    answer = httpx.post(f"{server.http}/try?model=digits", content=photo, headers=PHOTO, timeout=60)
    return answer.raise_for_status().json()


def test_the_maps_add_up_to_the_scores(server, photo):
    """Each class that the page shows has a map; places and offset are the score, and the map covers the photo."""
    told = tried(server, photo)
    maps, scores = told["maps"], told["scorers"][told["default_scorer"]]
    assert (maps["scorer"], told["why_no_maps"]) == (told["default_scorer"], "")
    assert [each["label"] for each in maps["classes"]] == [each["label"] for each in scores]
    sums = [sum(each["values"]) + each["offset"] for each in maps["classes"]]
    assert sums == pytest.approx([each["score"] for each in scores], abs=1e-3)
    assert {len(each["values"]) for each in maps["classes"]} == {maps["height"] * maps["width"]}
    assert maps["area"] == [0, 0, 8, 8]


def test_another_scorer_with_maps_stands_in(copy_model, start_server, tmp_path, models, photo):
    """If the default scorer has no exact maps, those of the other scorer come, with the reason."""
    manifest = json.loads((models / "digits" / "1" / MANIFEST_NAME).read_text())
    default = manifest["default_scorer"]
    (other,) = {"dense", "svm"} - {default}
    assert (default, other) == ("svm", "dense")  # the dense head's file would have to go with its entry
    support = manifest["class_maps"] | {"scorers": [other], "reasons": {default: "its kernel is RBF"}}
    told = tried(start_server(changed(copy_model, tmp_path, support), "--lookup", "off"), photo)
    assert (told["maps"]["scorer"], told["why_no_maps"]) == (other, "its kernel is RBF")
    (best, *_), scores = told["maps"]["classes"], {each["label"]: each["score"] for each in told["scorers"][other]}
    assert sum(best["values"]) + best["offset"] == pytest.approx(scores[best["label"]], abs=1e-3)


def test_a_model_without_maps_says_why(without_maps, photo):
    """A bundle of before has no maps, and the answer says what to do."""
    told = tried(without_maps, photo)
    assert (told["maps"], told["why_no_maps"]) == (None, OLDER)
    assert told["scorers"]["svm"]


# Of the canvas: width, height, and how much redder than blue the fullest and the emptiest pixels are.
_DRAWN = """(() => {
  const canvas = document.querySelector('.map'), { width, height } = canvas;
  const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
  const found = [];
  for (let n = 0; n < data.length; n += 4) if (data[n + 3]) found.push(data[n] - data[n + 2]);
  return [width, height, Math.max(...found.filter((_, n) => n % 7 === 0)), Math.min(...found.filter((_, n) => n % 7 === 0))];
})()"""


def drop(page: Browser, server, photo: bytes) -> None:
    """Open the page and give it a photo."""
    page.open(f"{server.http}/")
    page.wait("latest && !document.getElementById('try').hidden")
    text = base64.b64encode(photo).decode()
    page.run(f"tryPhoto(new Blob([Uint8Array.from(atob('{text}'), (each) => each.charCodeAt(0))])).then(() => true)")
    page.wait("document.querySelector('.tried')")


@pytest.mark.system
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_map_is_drawn_over_the_photo(server, photo, tmp_path, scheme, width):
    """A press draws orange and blue exactly over the photo, with a scale; another class redraws it; a press removes it."""
    with Browser(tmp_path) as page:
        page.size(width, 900, scheme, is_phone=width < 500)
        drop(page, server, photo)
        assert page.run("document.querySelector('.map').hidden")
        page.click(".looked button")
        page.wait("!document.querySelector('.map').hidden")
        wide, high, warmest, coolest = page.run(_DRAWN)
        assert wide == high == 800 and warmest > 100 and coolest < -100
        boxes = "['.photo', '.map'].map((each) => document.querySelector(each).getBoundingClientRect())"
        assert (
            page.run(f"(([a, b]) => [a.x - b.x, a.y - b.y, a.width - b.width, a.height - b.height])({boxes})")
            == [0] * 4
        )
        best, *others = page.run("[...document.querySelector('.looked select').options].map((each) => each.text)")
        assert f"for {best} +" in page.text(".range") and "offset" in page.text(".range")
        before = page.run("document.querySelector('.map').toDataURL()")
        page.run("(() => { const each = document.querySelector('.looked select'); each.value = 1; "
                 "each.dispatchEvent(new Event('change')); })()")  # fmt: skip
        assert f"for {others[0]} +" in page.text(".range")
        assert page.run("document.querySelector('.map').toDataURL()") != before
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.click(".looked button")
        assert page.run("document.querySelector('.map').hidden && document.querySelector('.range').hidden")
        assert page.errors == []


@pytest.mark.system
@needs_browser
def test_a_page_without_maps_says_why(without_maps, photo, tmp_path):
    """There is no button, and the reason stands there."""
    with Browser(tmp_path) as page:
        drop(page, without_maps, photo)
        assert not page.run("document.querySelector('.looked')")
        assert OLDER in page.text(".tried")
        assert page.errors == []
