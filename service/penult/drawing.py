"""What all pictures share: colours for colour-blind people too, one style, SVG or PNG bytes. Needs matplotlib.

The hues are Okabe and Ito's (2008). SVG pictures follow the reader: text is text, in a font that has its letters, and
ink, lines and background are CSS variables, which change in the dark.
"""

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9"
INK, MUTED, FAINT = "#2f2f2f", "#767676", "#e6e6e6"
PAGE = "#ffffff"
WHITE = "#fefefe"  # white in the dark too
_DPI = 160
# CSS variables of the colours that must change in the dark, as in the report's page.
_VARIABLES = {INK: "ink", MUTED: "muted", FAINT: "line", PAGE: "page"}
_TAG, _COLOUR = re.compile(r"<[a-zA-Z][^>]*>"), re.compile(r"(fill|stroke): (#[0-9a-f]{6})")
_FONT = re.compile(r" font-family: [^;\"]*;")
# What matplotlib writes above its drawing: a prolog, metadata, a style for all that is around it.
_HEAD = re.compile(
    r"^.*?<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>\s*(?:<metadata>.*?</metadata>\s*)?<defs>.*?</defs>", re.DOTALL
)
_STYLE_BLOCK = re.compile(r"<style>.*?</style>", re.DOTALL)
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{}" '
    'stroke-linejoin="round"><style>svg{{color-scheme:light dark;background:var(--page);'
    "font-family:system-ui,sans-serif;--ink:#1c2024;--muted:#5b6570;--line:#dde2e7;--page:#ffffff}}"
    "@media(prefers-color-scheme:dark){{svg{{--ink:#e6e8ea;--muted:#a2abb5;--line:#353c43;--page:#14171a}}}}</style>"
)
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a class or a model may be called $5
    "svg.fonttype": "none",
    "svg.hashsalt": "penult",  # the same picture, the same bytes
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style inside the block."""
    with matplotlib.rc_context(_STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches; call inside style()."""
    # Not pyplot's, which keeps every figure until it is closed.
    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Figure) -> bytes:
    """Return the figure's PNG bytes."""
    return _saved(drawn, "png", dpi=_DPI)


def svg(drawn: Figure) -> bytes:
    """Return the figure as an SVG file that looks right in light and dark; call inside style()."""
    text = _saved(drawn, "svg", transparent=True, metadata={"Date": None}).decode()
    body = _TAG.sub(lambda tag: _FONT.sub("", _COLOUR.sub(_variable, tag[0])), text)
    body = _HEAD.sub(lambda head: _SVG.format(head[1]), body, count=1)
    # Names of groups stand for nothing; indents and line ends are a tenth of the bytes.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace(";base64,\n", ";base64,")
    return re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", body)).encode()


def inline(drawn: bytes, name: str, description: str) -> str:
    """Return an SVG of svg() as an element of a page that sets its variables; `name` keeps its ids apart."""
    body = _STYLE_BLOCK.sub("", drawn.decode(), count=1)
    mark = {"id": f'id="{name}-', "url": f"url(#{name}-", "xlink:href": f'xlink:href="#{name}-'}
    known = re.compile(r'(?:(id)="|(url)\(#|(xlink:href)="#)')
    body = _TAG.sub(lambda tag: known.sub(lambda found: mark[str(found[found.lastindex or 0])], tag[0]), body)
    label = html.escape(description, quote=True)
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _saved(drawn: Figure, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names may be in scripts that no font here has. In an SVG the reader's fonts draw them; in a PNG, boxes are no
        # reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        drawn.savefig(buffer, format=kind, **more)
    return buffer.getvalue()


def _variable(found: re.Match[str]) -> str:
    name = _VARIABLES.get(found[2])
    return f"{found[1]}: var(--{name}, {found[2]})" if name else found[0]
