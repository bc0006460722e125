"""The pages on running penult: what they name exists, what they print is printed, and their commands run."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from penult.service.config import ServeConfig
from penult.settings import option_of

ROOT = Path(__file__).parents[2]
DOCS, DEPLOY = ROOT / "docs", ROOT / "deploy"
NAMES = ("deploying", "proxies", "kubernetes", "kserve", "sizing", "upgrading", "troubleshooting")
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in NAMES} | {"README": (DEPLOY / "README.md").read_text()}
ALL = "\n".join(PAGES.values())
SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "service" / "penult").rglob("*.py")))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """What stands between single backticks, outside blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text: str, program: str) -> list[list[str]]:
    """The words of every command of a program, in blocks and between backticks."""
    found = []
    for line in [line for block in blocks(text, "bash") for line in block.splitlines()] + spans(text):
        for part in re.split(r"[;|&]+(?=\s)|\bdo\b", line):
            if re.match(rf"\s*(?:/opt/penult/bin/)?{program}(?:\s|$)", part):
                found.append(part.split()[1:])
    return found


@cache
def help_of(verb: str) -> str:
    """What `penult VERB --help` prints."""
    command = [sys.executable, "-m", "penult.cli", *verb.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"penult {verb}: {done.stderr}"
    return done.stdout


# -- what is named exists ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pages_link_each_other(name):
    """Every link leads to a file, and every page leads on to another and is led to from another."""
    linked = {other: re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", PAGES[other]) for other in NAMES}
    assert [link for link in linked[name] if not (DOCS / link).exists()] == []
    assert {link.removesuffix(".md") for link in linked[name]} & set(NAMES) - {name}
    assert any(f"{name}.md" in links for other, links in linked.items() if other != name)


def test_files_exist():
    """Files and folders of the checkout that pages name are there."""
    named = set(re.findall(r"(?<![\w/.])(?:deploy|docs|bench|locks|tests)/[\w./-]*\w", ALL))
    named -= {"deploy/.env"}  # what the reader writes
    assert len(named) > 12
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_commands_exist():
    """Every `penult VERB --flag` is one that the command line has."""
    named = [words for words in commands(ALL, "penult") if words]
    assert len(named) > 8
    for verb, *words in named:
        full = f"{verb} {words[0]}" if verb == "index" else verb
        printed = help_of(full)
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in printed, f"penult {full} {word}"


def test_flags_and_settings_exist():
    """Flags that stand alone, variables, and settings by name are those of `penult serve`."""
    known = {name for field in fields(ServeConfig) for name in (field.name, option_of(field).alias)}
    flags = {span.split()[0].partition("=")[0] for span in spans(ALL) if span.startswith("--")}
    assert len(flags) > 6
    assert {flag[2:].replace("-", "_") for flag in flags} - known == set()
    variables = set(re.findall(r"\bPENULT_([A-Z_]+)\b", ALL))
    assert len(variables) >= 2
    assert {name.lower() for name in variables} - known == set()
    formula = next(span for span in spans(PAGES["sizing"]) if "queue_max_bytes" in span)
    assert set(re.findall(r"[a-z]+_[a-z_]+", formula)) <= known


def test_metrics_exist():
    """Every metric, and every label's value beside one, is in the code."""
    named = set(re.findall(r"\bpenult_[a-z_]+", ALL))
    assert len(named) > 8
    assert [name for name in sorted(named) if f'"{name}"' not in SOURCES] == []
    values = re.findall(r'\b(?:reason|outcome|phase)="(\w+)"', ALL)
    assert len(values) > 6
    assert [value for value in values if f'"{value}"' not in SOURCES] == []


def test_reasons_exist():
    """Reason codes are those that the code gives, and gRPC codes are gRPC's."""
    reasons = {span for span in spans(ALL) if re.fullmatch(r"[A-Z][A-Z_]+", span)}
    assert len(reasons) > 25
    reasons -= {name for name in reasons if name.startswith("PENULT_")}
    assert [reason for reason in sorted(reasons) if f'"{reason}"' not in SOURCES] == []
    codes = set(re.findall(r"(?<![`\w])[A-Z]+_[A-Z_]+\b(?!`)", PAGES["troubleshooting"]))
    states = {"NOT_SERVING"}
    assert codes - states - {code.name for code in grpc.StatusCode} - reasons == {"PENULT_THREADS"} & codes


@cache
def logged() -> list[str]:
    """Everything that the code may log, as regular expressions."""
    found = []
    for node in ast.walk(ast.parse(SOURCES.replace("from __future__ import annotations", ""))):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        is_logging = is_call and node.func.attr in ("info", "warning", "error", "exception") and node.args
        if is_logging and isinstance(node.args[0], ast.Constant):
            found.append(re.sub(r"%[\d.]*[sdfe]", ".+", re.escape(node.args[0].value)))
    assert len(found) > 20
    return found


def test_log_lines_are_logged():
    """Lines that troubleshooting.md shows are lines that the code writes."""
    lines = [line for block in blocks(PAGES["troubleshooting"], "log") for line in block.splitlines()]
    assert len(lines) >= 5
    assert [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in logged())] == []


def test_messages_are_printed():
    """What a start that fails prints, as troubleshooting.md has it, stands in the code or in compose.yaml."""
    section = PAGES["troubleshooting"].partition("## Start failures")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    printed = re.sub(r'"\s*\n\s*f?"', "", SOURCES) + (DEPLOY / "compose.yaml").read_text()
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) >= 7
    assert [message for message in messages if message not in printed] == []


def test_sizes_were_measured():
    """Every number of sizing.md's table stands in bench/RESULTS.md, and the machine is named as there."""
    results = (ROOT / "bench" / "RESULTS.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([^|]*\d[^|]*) \|$", PAGES["sizing"], re.MULTILINE)
    numbers = [number for row in rows for number in re.findall(r"\d+(?:\.\d+)?", row)]
    assert len(numbers) >= 11
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", results)] == []
    assert "AMD EPYC" in PAGES["sizing"]
    assert "AMD EPYC" in results


# -- commands run ------------------------------------------------------------------------------------------------------


def test_blocks_are_bash():
    """Each block of commands is one to bash, too."""
    for page in NAMES:
        for block in blocks(PAGES[page], "bash"):
            done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=300, check=False)
            assert (page, done.returncode, done.stderr) == (page, 0, "")


def test_compose_commands_name_what_is_there(tools):
    """`docker compose` is given files that exist and services that these have."""
    services = tools.load((DEPLOY / "compose.yaml").read_text())[0]["services"]
    named = commands(PAGES["deploying"], "docker")
    assert len(named) == 3
    for words in named:
        assert all((ROOT / path).is_file() for flag, path in pairwise(words) if flag == "-f")
        if "exec" in words:
            assert words[words.index("exec") + 2] in services
            assert f"--username={services['lookup']['environment']['POSTGRES_USER']}" in words


def test_the_passwords_are_made(tmp_path):
    """The first command of deploying.md writes what compose.yaml asks for, fit for an address of a database."""
    (tmp_path / "deploy").mkdir()
    command = blocks(PAGES["deploying"], "bash")[0].splitlines()[0]
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, timeout=300)
    made = dict(line.split("=") for line in (tmp_path / "deploy" / ".env").read_text().splitlines())
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    assert set(made) == asked
    assert all(re.fullmatch(r"[0-9a-f]{24,}", value) for value in made.values())


def test_systemd_commands_put_files_where_the_unit_looks():
    """What is installed exists in the checkout, and goes where unit and settings look for it."""
    unit = (DEPLOY / "systemd" / "penult.service").read_text()
    installed = {Path(words[-2]).name: words for words in commands(PAGES["deploying"], "install") if "-D" in words}
    assert set(installed) == {"penult.toml", "penult.service"}
    assert all((ROOT / words[-2]).is_file() for words in installed.values())
    assert f"--config {installed['penult.toml'][-1]}" in unit
    folders = next(words for words in commands(PAGES["deploying"], "install") if "-d" in words)
    assert f'models = "{folders[-1]}"' in (DEPLOY / "systemd" / "penult.toml").read_text()
    user = commands(PAGES["deploying"], "useradd")[0][-1]
    assert f"User={user}\n" in unit
    assert (ROOT / "locks" / "gpu.txt").is_file()


def test_kubectl_commands_name_what_is_there(tools, tmp_path):
    """Folders and files that are applied exist and are right, kubernetes.md's own overlay among them; services, claims
    and deployments that commands and clients name are those of the manifests.
    """  # fmt: skip
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns(".env"))
    (overlay,) = blocks(PAGES["kubernetes"], "yaml")
    (tmp_path / "penult").mkdir()
    (tmp_path / "penult" / "kustomization.yaml").write_text(overlay)
    words = [words for page in PAGES.values() for words in commands(page, "kubectl")]
    given = {pair for each in words for pair in pairwise(each)}
    files = {path for flag, path in given if flag == "-f"} - {"penult-rules.yaml"}
    documents = tools.load("\n---\n".join((tmp_path / path).read_text() for path in sorted(files)))
    assert files >= {"deploy/kubernetes/publish.yaml"}
    assert tools.complaints(documents) == []
    for folder in {path for flag, path in given if flag == "-k"}:  # held against schemas in test_kubernetes.py
        documents += tools.build(tmp_path / folder)
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    assert named >= {("Pod", "publish"), ("Deployment", "penult"), ("Service", "penult-headless"),
                     ("PersistentVolumeClaim", "penult-models")}  # fmt: skip
    service = re.search(r"dns:///([\w-]+)\.([\w-]+):(\d+)", PAGES["kubernetes"]).groups()
    assert service == ("penult-headless", "penult", str(ServeConfig().port))
    assert f"custom.metrics.k8s.io/v1beta1/namespaces/{service[1]}/pods/*/penult_queue_depth" in PAGES["kubernetes"]


def test_the_rules_become_a_resource(tools, tmp_path):
    """kubernetes.md's lines make a PrometheusRule of the alerts that the operator's schema takes, whole."""
    (tmp_path / "deploy").symlink_to(DEPLOY)
    block = next(block for block in blocks(PAGES["kubernetes"], "bash") if "PrometheusRule" in block)
    made, applied = block.rsplit("\n", 2)[0], block.rsplit("\n", 2)[1]
    assert applied == "kubectl apply -f penult-rules.yaml"
    subprocess.run(["bash", "-euc", made], cwd=tmp_path, check=True, timeout=300)
    documents = tools.load((tmp_path / "penult-rules.yaml").read_text())
    assert tools.complaints(documents) == []
    (own,) = tools.load((DEPLOY / "prometheus" / "penult.rules.yml").read_text())
    assert documents[0]["spec"] == own
