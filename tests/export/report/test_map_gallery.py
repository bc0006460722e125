"""Where it looked, in the report: exact maps that add up to the score, or occlusion maps with the reason."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penult.bundle.class_map import LinearHead
from penult.export.evaluation.class_maps import ExactMaps, OcclusionMaps
from penult.export.report.map_gallery import map_gallery
from penult.export.report.report import report_files


def features_of(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colours of 4 x 4 places as a feature map [n, 1, 3, 4, 4], and their mean [n, 3]."""
    n, size = crops.shape[:2]
    places = crops.reshape(n, 4, size // 4, 4, size // 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255
    features = places[:, None].astype(np.float32)
    return features, features.mean(axis=(1, 3, 4))


@pytest.fixture
def exact() -> ExactMaps:
    """Maps of a scorer that counts red for cats, and green for dogs."""
    head = LinearHead(np.array([[4.0, -4.0, 0.0], [-4.0, 4.0, 0.0]], np.float32), np.array([0.5, -0.5], np.float32))
    return ExactMaps("svm", ("cat", "dog"), head, features_of)


def crops(chosen: Any) -> np.ndarray:
    """Return photos with a red top left and a green bottom right."""
    photos = np.full((len(chosen), 32, 32, 3), 90, np.uint8)
    photos[:, :8, :8], photos[:, 24:, 24:] = (250, 0, 0), (0, 250, 0)
    return photos


def pixels(uri: str) -> np.ndarray:
    """Return the pixels of a picture in the page."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(int)


def test_errors_have_two_maps_and_right_answers_one(report_data: Callable, exact: ExactMaps):
    """The error has the maps of its answer and of its class; the right answers are the surest, of each class alike."""
    made = report_data(("cat", "dog"), maps=exact, crops=crops)
    found = map_gallery(made)
    (wrong,) = found.wrong
    assert (wrong.true, wrong.answer) == ("dog", "cat") and [each.label for each in wrong.maps] == ["cat", "dog"]
    assert len({each.limit for each in wrong.maps}) == 1
    assert sorted(each.true for each in found.right) == ["cat", "cat", "dog", "dog"]
    assert all(each.true == each.answer and len(each.maps) == 1 for each in found.right)
    _, descriptors = features_of(crops([0]))
    of_cat, of_dog = exact._head.scores(descriptors[0])
    assert [each.score for each in wrong.maps] == pytest.approx([of_cat, of_dog], abs=1e-5)
    cat, dog = (pixels(each.uri) for each in wrong.maps)
    assert cat[20, 20, 0] - cat[20, 20, 2] > 60 and cat[-20, -20, 2] - cat[-20, -20, 0] > 60
    assert dog[20, 20, 2] - dog[20, 20, 0] > 60 and dog[-20, -20, 0] - dog[-20, -20, 2] > 60


def test_the_page_says_what_a_map_is(report_data: Callable, exact: ExactMaps):
    """The section names the scorer, shows every map with its scale, and says that the places add up to the score."""
    page = report_files(report_data(("cat", "dog"), maps=exact, crops=crops))["report/index.html"].decode()
    section = re.search(r'<section id="class-maps">.*?</section>', page, re.DOTALL)[0]
    assert "add up to the score of the SVM" in " ".join(section.split())
    assert section.count("<img") == 6 and section.count("scale ±") == 5 and '<a href="#class-maps">' in page
    assert "occlusion" not in section.lower()


def test_a_network_without_exact_maps_has_occlusion_maps(report_data: Callable):
    """They are called so, with the reason; six photos at most, and nothing claims that they add up."""
    asked = []

    def scores_of(given: np.ndarray) -> np.ndarray:
        asked.append(len(given))
        return given[:, :8, :8].mean(axis=(1, 2))[:, :2].astype(np.float32)

    maps = OcclusionMaps("svm", "hidden dense layers lie between", ("cat", "dog"), scores_of)
    page = report_files(report_data(("cat", "dog"), maps=maps, crops=crops))["report/index.html"].decode()
    section = " ".join(re.search(r'<section id="class-maps">.*?</section>', page, re.DOTALL)[0].split())
    assert "Occlusion" in section and "hidden dense layers lie between" in section
    assert "do not add up to the score" in section and "score " not in re.sub(r"score of|the score", "", section)
    assert "added up" not in section and "hiding it lowers the score" in section
    assert asked == [37] * 5


@pytest.mark.parametrize("without", [{"maps": None}, {"crops": None}])
def test_without_maps_or_photos_there_is_no_section(report_data: Callable, exact: ExactMaps, without: dict[str, Any]):
    """A report that must not show photos shows none under a map either."""
    page = report_files(report_data(("cat", "dog"), **({"maps": exact, "crops": crops} | without)))
    assert b"class-maps" not in page["report/index.html"]
