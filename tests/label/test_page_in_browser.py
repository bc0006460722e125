"""The page in a real browser, driven by keys, mouse and touch: what is pressed is what is in the label file."""

import resource
from contextlib import contextmanager

import pytest
from tests.fixtures import axe
from tests.fixtures.browser import CHROMIUM, SHIFT, Browser
from tests.fixtures.shapes import CLASSES

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
KEYS = dict(zip(CLASSES, "1234", strict=True))
NAME = "document.querySelector('#one:not([hidden]) #stage .name')?.textContent"
SAVED = "document.querySelector('#saved').textContent === '✓ saved'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests here."""
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(served, browser):
    """The browser with a new page, which must not have reported an error at the end."""
    browser.errors.clear()
    browser.size(1280, 900)
    browser.open(served.server.url)
    browser.wait(f"{NAME} && document.querySelector('#stage img').complete")
    yield browser
    assert browser.errors == []
    browser.open("about:blank#left")


def truth(id_: str) -> str:
    """Return the class of a photo."""
    return id_.partition("/")[0]


def press(page, key: str) -> str:
    """Press a key that answers the photo that is shown; return that one once the next is shown."""
    name = page.run(NAME)
    page.key(key)
    page.wait(f"{NAME} !== {name!r}")
    return name


def label(page, number: int) -> dict[str, str]:
    """Label photos as they are, by keys; return what was answered, once it is saved."""
    answered = {}
    for _ in range(number):
        name = page.wait(NAME)
        answered[press(page, KEYS[truth(name)])] = truth(name)
    page.wait(SAVED)
    return answered


def test_keys_label_skip_and_take_back(page, served):
    """A key labels the photo that is shown, space accepts the guess, backspace takes back, s skips, n makes a class."""
    answered = label(page, 24)
    assert served.written() == answered
    page.wait("document.querySelector('#guess b')")
    guess = page.text("#guess b")
    by_space = press(page, " ")
    page.wait(SAVED)
    assert served.written() == answered | {by_space: guess}
    press(page, "Backspace")
    page.wait(f"{SAVED} && document.querySelector('#count b').textContent === '24'")
    assert page.run(NAME) == by_space
    assert served.written() == answered
    skipped = press(page, "s")
    page.wait("document.querySelector('#count').textContent.includes('1 skipped')")
    page.key("n")
    page.wait("document.querySelector('#new-dialog[open]')")
    page.type("hexagon")
    new = page.run(NAME)
    page.key("Enter")
    page.wait(f"{SAVED} && {NAME} !== {new!r}")
    assert served.written() == answered | {new: "hexagon"}
    assert skipped not in served.written()
    page.wait(
        "[...document.querySelectorAll('#answers button')].some((each) => each.textContent.startsWith('5hexagon'))"
    )


def test_keys_as_fast_as_they_come_are_all_in_the_file(page, served):
    """Answers that are pressed faster than the disk takes them are all written, each for its photo."""
    page.wait("performance.getEntriesByType('resource').filter((each) => each.name.includes('/image/')).length >= 6")
    for key in "1234":
        page.key(key)
    page.wait("document.querySelector('#count b').textContent === '4'")
    assert sorted(served.written().values()) == sorted(CLASSES)


def test_the_grid_confirms_all_but_those_marked(page, served):
    """Shift-click marks a range, arrow keys and space mark one, Enter labels the others, backspace takes all back."""
    before = label(page, 40)
    page.key("g")
    page.wait(
        "document.querySelectorAll('.shot').length > 6 && document.querySelector('#tiles').getAttribute('aria-busy') === 'false'"
    )
    label_ = page.run("document.querySelector('#grid-class').value")
    shown = page.run("[...document.querySelectorAll('.shot img')].map((each) => each.alt.replace('Photo ', ''))")
    page.click(".shot:nth-child(2)")
    page.click(".shot:nth-child(4)", SHIFT)
    page.key("ArrowRight")
    page.key("ArrowRight")
    page.key(" ")
    marked = page.run(
        "[...document.querySelectorAll('.shot')].map((each) => each.getAttribute('aria-pressed') === 'true')"
    )
    assert [place for place, is_marked in enumerate(marked) if is_marked] == [1, 2, 3, 5]
    page.key("Enter")
    confirmed = {name: label_ for name, is_marked in zip(shown, marked, strict=True) if not is_marked}
    page.wait(f"{SAVED} && document.querySelector('#count b').textContent === '{40 + len(confirmed)}'")
    assert served.written() == before | confirmed
    page.key("Backspace")
    page.wait(f"{SAVED} && document.querySelector('#count b').textContent === '40'")
    assert served.written() == before
    page.key("Escape")
    page.wait(NAME)


def test_another_page_is_followed_and_not_overwritten(page, served):
    """Counts follow other pages; an answer to a photo that another page has labelled is refused in plain words."""
    name = page.run(NAME)
    served.client.post("/api/labels", json={"id": name, "label": "star"})
    page.wait("document.querySelector('#count b').textContent === '1'")
    page.key("1")
    page.wait("!document.querySelector('#conflict').hidden")
    assert "was labelled star in another page" in page.text("#conflict")
    assert served.written() == {name: "star"}
    page.click("#conflict button:nth-of-type(2)")
    page.wait(f"{SAVED} && document.querySelector('#conflict').hidden")
    assert served.written() == {name: "circle"}
    assert [line for line in page.errors if "409" not in line] == []
    page.errors.clear()


@contextmanager
def full_disk(bytes_: int):
    """No file of this process can grow above a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_saved_comes_back(page, served):
    """On a full disk one line says so, the photos come back in their order, and work goes on once there is room."""
    before = label(page, 2)
    names = []
    with full_disk(served.labels.stat().st_size + 5):
        names.append(page.run(NAME))
        page.key("1")
        page.wait("!document.querySelector('#failure').hidden")
        page.wait(f"{NAME} === {names[0]!r}")
    line = page.text("#failure")
    assert "\n" not in line
    assert "Not saved: 1 answer. The photo is back" in line
    assert page.text("#saved") == "✕ not saved"
    assert served.written() == before
    press(page, "1")
    page.wait(f"{SAVED} && document.querySelector('#failure').hidden")
    assert served.written() == before | {names[0]: "circle"}
    assert [line for line in page.errors if "503" not in line] == []
    page.errors.clear()


def test_a_photo_that_cannot_be_shown_is_told_and_skipped(page, served):
    """A file that is gone since the start has a frame with the reason instead of a picture, and s goes on."""
    ahead = set(page.run("performance.getEntriesByType('resource').map((each) => each.name)"))
    photo = next(p for p in served.session.pool.photos if not any(p.sha256 in url for url in ahead))
    data = photo.path.read_bytes()
    photo.path.unlink()
    try:
        page.run(f"document.querySelector('#stage img').src = '/image/{photo.sha256}?size=1280'")
        page.wait("document.querySelector('#stage .broken')")
        assert "can no longer be read" in page.text("#stage .broken")
        assert "Skip it" in page.text("#stage .broken")
    finally:
        photo.path.write_bytes(data)
    press(page, "s")
    page.wait("document.querySelector('#stage img').complete")
    page.errors.clear()


def test_a_phone_needs_no_keys(page, served):
    """At a phone's width all buttons are at least 44 px, within the screen, and label by touch."""
    page.size(390, 844, is_phone=True)
    small = "[...document.querySelectorAll('#one button')].map((each) => each.getBoundingClientRect()).filter((box) => box.width < 44 || box.height < 44 || box.right > innerWidth || box.bottom > innerHeight).length"
    assert page.run(small) == 0
    name = page.run(NAME)
    page.click("#answers button:nth-child(2)")
    page.wait(f"{SAVED} && {NAME} !== {name!r}")
    assert served.written() == {name: CLASSES[1]}
    assert page.run("document.documentElement.scrollWidth") == 390


def test_names_are_shown_as_text(page, served):
    """A class that is called like markup stands there as it is called, and runs nothing."""
    evil = "<img src=x onerror=document.title='bitten'>"
    served.client.post("/api/classes", json={"name": evil})
    page.wait("[...document.querySelectorAll('#answers .text')].length === 5")
    assert page.text("#answers button:nth-child(5) .text") == evil
    assert "bitten" not in page.run("document.title")


@pytest.mark.skipif(axe.NPM is None, reason="needs npm: apt-get install npm")
def test_axe_finds_no_serious_fault(page, served):
    """axe-core finds nothing serious or critical in any view, light or dark, wide or narrow."""
    script = axe.install()
    label(page, 40)
    views = {"one": [], "grid": ["g"], "help": ["Escape", "?"], "new class": ["Escape", "n"]}
    found = []
    for view, keys in views.items():
        for key in keys:
            page.key(key)
        if view == "grid":
            page.wait("document.querySelectorAll('.shot').length > 1")
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            page.size(width, 844, scheme)
            found += [f"{view}, {width}, {scheme}: {fault}" for fault in axe.faults(page, script)]
    assert found == []
    page.key("Escape")
    page.run("document.querySelector('#stage').innerHTML = '<img src=data:,>'")
    assert axe.faults(page, script)  # it can find one
    page.errors.clear()
