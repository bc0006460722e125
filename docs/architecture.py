"""Read the imports of the code; draw the rooms as SVG pictures and print their numbers. Standard library only.

`make architecture` draws docs/rooms.svg, docs/rooms-service.svg and docs/rooms-export.svg and prints the numbers.
`python docs/architecture.py --root PATH` prints the numbers of another checkout and draws nothing.
"""

import argparse
import ast
import html
import io
import textwrap
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PORTIONS = ("proto", "service", "export")
# The package whose rooms a picture shows: file name, heading.
PICTURES = {
    "penult": ("rooms.svg", "penult: the rooms"),
    "penult.service": ("rooms-service.svg", "penult.service: the rooms of the server"),
    "penult.export": ("rooms-export.svg", "penult.export: the rooms of training"),
}
# Single files beside the rooms of `penult`, which every room may import.
COMMON = "common files"
# Of a picture, in pixels: narrow enough for a phone.
WIDTH, MARGIN, LANES, LINE = 400, 12, 168, 15
CHARACTERS = 33

STYLE = """
svg{color-scheme:light dark;font-family:system-ui,sans-serif;--ink:#1c2024;--muted:#5b6570;--line:#9aa4ae;--row:#f1f4f6;
--page:#fff;--mark:#0072b2;--wrong:#d1242f}
@media(prefers-color-scheme:dark){svg{--ink:#e6e8ea;--muted:#a2abb5;--line:#6b7580;--row:#1e2328;--page:#14171a;
--mark:#56b4e9;--wrong:#ff7b72}}
text{fill:var(--muted);font-size:12px}.name{fill:var(--ink);font-size:14px;font-weight:600}
path{stroke:var(--line);stroke-width:1.3;fill:none}.row{fill:var(--row)}.page{fill:var(--page)}.mark{fill:var(--mark)}
.wrong{fill:var(--wrong)}
"""


@dataclass(frozen=True)
class Rooms:
    """The rooms of a package from the top down, their files, and the arrows between them (importer, imported)."""

    files: dict[str, list[str]]
    arrows: set[tuple[str, str]]
    circles: int

    def up(self) -> set[tuple[str, str]]:
        """Return the arrows that point from a room to one above it."""
        place = {room: number for number, room in enumerate(self.files)}
        return {(importer, imported) for importer, imported in self.arrows if place[importer] > place[imported]}


def modules(root: Path) -> dict[str, Path]:
    """Return every module that is not generated: dotted name, file."""
    return {
        ".".join(path.relative_to(root / portion).with_suffix("").parts).removesuffix(".__init__"): path
        for portion in PORTIONS
        for path in sorted((root / portion / "penult").rglob("*.py"))
        if "_pb2" not in path.name
    }


def imports(known: dict[str, Path], module: str) -> set[str]:
    """Return which of the known modules a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(known[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else str(node.module) for name in names}
    return found & set(known) - {module}


def room_of(module: str, package: str, known: dict[str, Path]) -> str | None:
    """Return the room of a module, a folder or a single file; None for other packages and the package itself."""
    if not module.startswith(package + "."):
        return None
    room = module.removeprefix(package + ".").split(".")[0]
    is_folder = f"{package}.{room}" not in known or known[f"{package}.{room}"].name == "__init__.py"
    return COMMON if package == "penult" and not is_folder else room


def rooms(root: Path, package: str) -> Rooms:
    """Return the rooms of a package in the order that tests/test_layers.py declares, else sorted by the imports."""
    known = modules(root)
    room = {module: name for module in known if (name := room_of(module, package, known))}
    arrows = {
        (importer, room[imported])
        for module, importer in room.items()
        for imported in imports(known, module)
        if imported in room and room[imported] != importer
    }
    reached = {name: _reach(name, arrows) for name in set(room.values())}
    circle = {name: frozenset({name} | {to for to in ends if name in reached[to]}) for name, ends in reached.items()}
    depth: dict[str, int] = {}

    def depth_of(name: str) -> int:
        above = (a for a, b in arrows if b in circle[name] and a not in circle[name])
        if name not in depth:
            depth[name] = 1 + max(map(depth_of, above), default=-1)
        return depth[name]

    declared = _declared_order(root).get(package, [])

    def place(name: str) -> tuple[float, int, str]:
        if name in declared:
            return declared.index(name), 0, name
        # A file beside the rooms: just above the highest room that it imports, else below all.
        below = (declared.index(b) - 0.5 for a, b in arrows if a == name and b in declared)
        return min(below, default=len(declared)), depth_of(name), name

    files: dict[str, list[str]] = {name: [] for name in sorted(reached, key=place)}
    for module, name in room.items():
        if known[module].name != "__init__.py":
            files[name].append(module.rsplit(".", 1)[1])
    return Rooms(files, arrows, len({group for group in circle.values() if len(group) > 1}))


def _reach(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    """Return every room that can be reached from a room along arrows."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = {b for a, b in arrows if a == ahead[-1]} - found
        ahead.pop()
        found |= new
        ahead += new
    return found


def _declared_order(root: Path) -> dict[str, list[str]]:
    """Return ORDER of tests/test_layers.py; nothing if it has none."""
    for node in ast.parse((root / "tests" / "test_layers.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ORDER":
            return dict(ast.literal_eval(node.value))
    return {}


def code_lines(text: str) -> int:
    """Return the number of lines that hold code: no blank lines, comments and docstrings."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def numbers(root: Path) -> str:
    """Return a table of files, rooms, arrows and lines of the packages that have rooms, and of all code."""
    known = modules(root)
    lines = [f"{'package':16}{'files':>7}{'rooms':>7}{'arrows':>8}{'up':>4}{'circles':>9}{'code':>8}{'lines':>8}"]
    for package in ("penult.service", "penult.export", "penult.client", "penult"):
        of = rooms(root, package)
        texts = [path.read_text() for name, path in known.items() if f"{name}.".startswith(package + ".")]
        counts = (len(texts), len(of.files), len(of.arrows), len(of.up()), of.circles)
        lines.append(
            f"{package:16}{counts[0]:7}{counts[1]:7}{counts[2]:8}{counts[3]:4}{counts[4]:9}"
            f"{sum(map(code_lines, texts)):8}{sum(text.count(chr(10)) for text in texts):8}"
        )
    return "\n".join([*lines, "code: lines without blank lines, comments and docstrings; up: arrows to a room above"])


def picture(root: Path, package: str) -> str:
    """Return the rooms of a package as SVG, with a line from each room down to those that it imports."""
    of, known = rooms(root, package), modules(root)
    heading = PICTURES[package][1]
    up, names = of.up(), list(of.files)
    step = LANES / len(names)
    x = {name: round(WIDTH - MARGIN - (number + 0.5) * step, 1) for number, name in enumerate(names)}
    y: dict[str, int] = {}
    texts, bands, height = [], [], 62
    for number, name in enumerate(names):
        about = _about(known, package, name, of.files[name])
        y[name] = height + 13
        texts.append(f'<text class="name" x="{MARGIN}" y="{height + 18}">{html.escape(name)}</text>')
        for line, words in enumerate(about):
            texts.append(f'<text x="{MARGIN}" y="{height + 33 + LINE * line}">{html.escape(words)}</text>')
        tall = 28 + LINE * len(about)
        if number % 2 == 0:
            bands.append(f'<rect class="row" y="{height}" width="{WIDTH}" height="{tall}"/>')
        height += tall
    lines, dots = [], []
    for name in names:
        ends = sorted(y[imported] for importer, imported in of.arrows if importer == name)
        users = sorted(x[importer] for importer, imported in of.arrows if imported == name)
        if ends:
            lines.append(f'<path d="M{x[name]} {min(y[name], ends[0])}V{max(y[name], ends[-1])}"/>')
        if users:
            lines.append(f'<path d="M{min(x[name], users[0])} {y[name]}H{max(x[name], users[-1])}"/>')
        dots.append(f'<rect class="mark" x="{x[name] - 4:.1f}" y="{y[name] - 4}" width="8" height="8" rx="1.5"/>')
    for importer, imported in sorted(of.arrows):
        colour = "wrong" if (importer, imported) in up else "mark"
        dots.append(f'<circle class="{colour}" cx="{x[importer]}" cy="{y[imported]}" r="3.2"/>')
    below = {name: ", ".join(other for other in names if (name, other) in of.arrows) for name in names}
    said = f"{heading}. " + " ".join(f"{name} imports {below[name] or 'no other room'}." for name in names)
    counts = f"{len(names)} rooms, {len(of.arrows)} arrows, {len(up)} up"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{html.escape(said)}">',
        f"<style>{STYLE}</style>", f'<rect class="page" width="{WIDTH}" height="{height}"/>', *bands,
        f'<text class="name" x="{MARGIN}" y="22">{heading}</text>',
        f'<text x="{MARGIN}" y="38">Follow the line down from a square: each dot is a</text>',
        f'<text x="{MARGIN}" y="52">room that it imports. {counts}.</text>',
        *lines, *dots, *texts, "</svg>", "",
    ])  # fmt: skip


def _about(known: dict[str, Path], package: str, room: str, files: list[str]) -> list[str]:
    """Return the lines under a room's name: its files, or for a room of `penult` what its docstring says."""
    path = known.get(f"{package}.{room}")
    words = ", ".join(files)
    if package == "penult" and path:
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        words = said.split("\n\n")[0].replace("\n", " ").replace("`", "").split(". ")[0].removesuffix(".")
    elif files == [room] or (path and path.name != "__init__.py"):
        words = "one file"
    return textwrap.wrap(words, CHARACTERS)


def draw(root: Path) -> Iterable[tuple[str, str]]:
    """Yield each picture: file name, SVG text."""
    for package, (name, _) in PICTURES.items():
        yield name, picture(root, package)


def main() -> None:
    """Draw the pictures of this checkout, and print its numbers or those of another one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="print the numbers of this checkout, draw nothing")
    root = parser.parse_args().root
    print(numbers(root or ROOT))
    for name, text in () if root else draw(ROOT):
        (ROOT / "docs" / name).write_text(text)
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
