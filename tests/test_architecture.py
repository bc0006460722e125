"""The pictures of the rooms show the imports as they are, and the numbers count what they say."""

import re
from pathlib import Path

import pytest
from docs import architecture


@pytest.mark.parametrize("package", architecture.PICTURES)
def test_picture_is_current(package: str):
    """A checked-in picture is what `make architecture` draws now."""
    name = architecture.PICTURES[package][0]
    drawn = architecture.picture(architecture.ROOT, package)
    assert (architecture.ROOT / "docs" / name).read_text() == drawn, f"docs/{name} is stale: run make architecture"


def test_arrows_up_and_circles_are_found(tmp_path: Path):
    """A room that imports one above it is an arrow up; two rooms that import each other are a circle."""
    for path, text in {
        "service/penult/shop/__init__.py": "",
        "service/penult/shop/cellar.py": "def f():\n    from penult.shop.roof.tiles import tile\n",
        "service/penult/shop/roof/__init__.py": "",
        "service/penult/shop/roof/tiles.py": "import penult.shop.cellar\n\ntile = 1\n",
        "service/penult/shop/hall.py": "from penult.shop import cellar, roof\n",
        "tests/test_layers.py": "ORDER = {'penult.shop': ['hall', 'roof', 'cellar']}\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = architecture.rooms(tmp_path, "penult.shop")
    assert found.files == {"hall": ["hall"], "roof": ["tiles"], "cellar": ["cellar"]}
    assert found.arrows == {("hall", "cellar"), ("hall", "roof"), ("roof", "cellar"), ("cellar", "roof")}
    assert (found.up(), found.circles) == ({("cellar", "roof")}, 1)


def test_code_lines_leave_out_blank_lines_comments_and_docstrings():
    """A text of three lines of code counts three, however many lines are between them."""
    assert (
        architecture.code_lines('"""Doc."""\n\n# why\nx = (1,\n     2)\n\n\ndef f():\n    """Doc\n    more."""\n') == 3
    )


@pytest.mark.parametrize(
    ("page", "bases"),
    [
        ("CONTRIBUTING.md", ["", "service/penult/client", "service/penult/service/grpc"]),
        ("docs/architecture.md", ["", "service/penult", "service/penult/service", "export/penult/export"]),
    ],
)
def test_pages_name_files_that_exist(page: str, bases: list[str]):
    """Every file and folder that a page names in code is there."""
    named = re.findall(r"`([\w./-]+(?:\.py|\.md|\.proto|\.toml|/))`", (architecture.ROOT / page).read_text())
    assert named
    assert [name for name in named if not any((architecture.ROOT / base / name).exists() for base in bases)] == []
