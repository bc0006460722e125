"""What trust costs on the way of every request: tokens, TLS, fair turns, recovery.

    python bench/trust.py [--model mobilenet_v3_small] [--before REVISION] [--rounds 7] [--seconds 6]

Servers of a bench bundle side by side (bench/prepare.py): as it is, with tokens, with tokens and TLS; and, with
--before, the service of another revision, out of git. Rounds are interleaved; the figure is CPU time of the server's
process per photo, eight callers with one photo each.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prepare
from served import Served, compare

from penult.client import Security

ROOT = Path(__file__).parent.parent
SERVE = [sys.executable, "-P", "-m", "penult.cli", "serve"]
NOW = "as it is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--before", metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6)
    wanted = parser.parse_args()
    prepare.prepare_one(wanted.model)
    photos = prepare.jpegs()
    with tempfile.TemporaryDirectory() as name:
        servers = start(Path(name), wanted)
        try:
            compare(servers, f"at {wanted.before}" if wanted.before else NOW, photos, wanted.rounds, wanted.seconds)
        finally:
            for server in servers.values():
                server.stop()


def start(folder: Path, wanted: argparse.Namespace) -> dict[str, Served]:
    """Start the servers, each with a copy of the model."""
    models = folder / "models"
    shutil.copytree(prepare.MODELS / wanted.model, models / wanted.model)
    tokens = folder / "tokens"
    tokens.write_text(f"bench read {hashlib.sha256(b'bench').hexdigest()}\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
    known, safe = Security(token="bench"), Security(ca=folder / "cert.pem", token="bench")
    guarded = ("--tokens", str(tokens))
    servers = {
        NOW: Served(SERVE, models, folder / "log-now"),
        "with tokens": Served(SERVE, models, folder / "log-tokens", *guarded, security=known),
        "with tokens and TLS": Served(SERVE, models, folder / "log-tls", *guarded, *tls, security=safe),
    }
    if wanted.before:
        source = folder / "before"
        source.mkdir()
        archive = subprocess.run(["git", "archive", wanted.before], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        paths = os.pathsep.join(str(source / room) for room in ("proto", "service", "export"))
        before = Served(SERVE, models, folder / "log-before", env={"PYTHONPATH": paths})
        servers[f"at {wanted.before}"] = before
    return servers


if __name__ == "__main__":
    main()
