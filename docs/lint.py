"""Check prose against docs/words.toml: banned words, long first sentences, chains of colons and semicolons.

Reads Markdown without its code, strings and docstrings of Python, and comments of .proto files. Also reads texts of
HTML and JavaScript, and every line of other files. Prints one line per finding and exits with 1 if there is one.

    .venv/bin/python docs/lint.py [PATH …]
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RULES = tomllib.loads((ROOT / "docs" / "words.toml").read_text())
BANNED = [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), instead) for words, instead in RULES["banned"].items()]
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z`\"'(]|penult\b|[\w-]+\.md)")
SQL = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP)\b")
OTHERS = {".yaml", ".yml", ".toml", ".cfg", ".conf", ".service", ".sh"}

Text = tuple[int, str, bool]  # first line; words; whether the rules for sentences hold


def _blank(found: re.Match[str]) -> str:
    """Remove a piece of code, keep its line breaks."""
    return "X" + "\n" * found[0].count("\n")


def _markdown(source: str, line: int = 1) -> Iterator[Text]:
    """Split into paragraphs, list items, table rows and headings."""
    text = re.sub(r"^\s*```.*?^\s*```$", _blank, source, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|``?[^`]+``?|<[^>\n]+>|\{[{%].*?[%}]\}", _blank, text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for part in re.split(r"(\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\||>|#)))", text):
        if part.strip(" |\n"):
            yield (
                line,
                re.sub(r"^\s*(?:[-*>#]+|\d+\.) ", "", part),
                not re.match(r"\s*[|#]|.*(?:\n[├└]|\w {3,}\w)", part),
            )
        line += part.count("\n")


def _python(source: str) -> Iterator[Text]:
    """Docstrings as prose, other strings of three words or more for their words only."""
    nodes = list(ast.walk(ast.parse(source)))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in nodes if isinstance(node, holders) and ast.get_docstring(node)}
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part != node}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        else:
            text = getattr(node, "value", "") if isinstance(node, ast.Constant) else ""
        if id(node) in docs:
            sections = r"^\s*(?:Args|Attributes|Returns|Raises|Yields):.*"
            prose = re.sub(sections, "", text, flags=re.DOTALL | re.MULTILINE)
            yield from _markdown(prose, node.lineno)
        elif isinstance(text, str) and text.count(" ") > 1 and id(node) not in inner and not SQL.match(text):
            yield node.lineno, text, False


def _proto(source: str) -> Iterator[Text]:
    yield from _markdown("\n".join((re.findall(r"^\s*// ?(.*)$", line) or [""])[0] for line in source.splitlines()))


def _page(source: str) -> Iterator[Text]:
    """Texts between tags, and strings of three words or more, of HTML and JavaScript."""
    blank = re.sub(r"<style.*?</style>|\{[{%].*?[%}]\}", _blank, source, flags=re.DOTALL)
    for found in re.finditer(r">([^<>{}]+)<|\"([^\"\n]* [^\"\n]* [^\"\n]*)\"|`([^`]* [^`]* [^`]*)`", blank):
        yield blank.count("\n", 0, found.start()) + 1, found[1] or found[2] or found[3], False


def _lines(source: str) -> Iterator[Text]:
    yield from ((number, line, False) for number, line in enumerate(source.splitlines(), 1))


READERS = {".md": _markdown, ".py": _python, ".proto": _proto, ".html": _page, ".js": _page}
READERS |= dict.fromkeys(OTHERS, _lines)


def _findings(line: int, text: str, is_prose: bool) -> Iterator[tuple[int, str]]:
    text = re.sub(r"\n[ \t]+", "\n", text)
    for pattern, instead in BANNED:
        for found in pattern.finditer(text.replace("\n", " ")):
            yield line + text.count("\n", 0, found.start()), f'"{found[0]}": write {instead}'
    for index, sentence in enumerate(SENTENCE_END.split(text.strip()) if is_prose else []):
        at = line + text.count("\n", 0, max(0, text.find(sentence[:40])))
        words, stops = len(re.findall(r"\w[\w'’.,-]*", sentence)), len(re.findall(r"[:;](?=\s+\S)", sentence))
        if not index and words > RULES["max_first_sentence"]:
            yield at, f"first sentence of {words} words: write at most {RULES['max_first_sentence']}"
        if stops > RULES["max_stops"]:
            yield at, f"{stops} colons and semicolons in a sentence: write at most {RULES['max_stops']}"


def _files(paths: list[str]) -> list[Path]:
    """Return the files below the paths that git does not ignore, as it ignores the bundle that the demo leaves."""
    command = ["git", "ls-files", "-zco", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [path for name in listed.stdout.decode().split("\0")[:-1] if (path := ROOT / name).is_file()]


def main(paths: list[str]) -> int:
    """Check the paths, or those of words.toml without the parts not yet clean. Return the exit code."""
    skipped = [] if paths else [ROOT / path for path in RULES["not_yet_clean"]]
    count = 0
    for path in _files([str(Path(path).resolve()) for path in paths] or RULES["paths"]):
        is_text = path.suffix in READERS and not re.search(r"_pb2|^words\.toml$", path.name)
        if not is_text or any(path.is_relative_to(part) for part in skipped):
            continue
        for text in READERS[path.suffix](path.read_text()):
            for line, finding in _findings(*text):
                count += 1
                print(f"{path.relative_to(ROOT)}:{line}: {finding}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
