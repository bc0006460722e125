"""`make audit`: known vulnerabilities of what the images install, by pip-audit, lock file by lock file.

Ends with 1 where one is known. Where the registry tells no vulnerabilities, as a mirror may not, nothing was audited:
that is said, and with AUDIT=strict ends with 2.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

_LOCKS = ("cpu.txt", "gpu.txt", "train.txt", "with-milvus.txt")
_IGNORED = Path(__file__).with_name("audit-ignored.txt")


def main() -> int:
    """Audit every lock; return the exit code."""
    known, audited, skipped = [], set(), set()
    for lock in _LOCKS:
        for package in _audit(Path(__file__).with_name(lock)):
            name = f"{package['name']} {package.get('version', '')}".strip()
            (skipped if "skip_reason" in package else audited).add(name)
            known += [(lock, name, found) for found in package.get("vulns", ())]
    for lock, name, found in known:
        fixed = ", ".join(found["fix_versions"]) or "no version yet"
        print(f"{lock}: {name} has {found['id']}; fixed in {fixed}: make lock")
    print(f"{len(audited)} packages audited, {len(known)} known vulnerabilities")
    if skipped - audited:
        print(f"NOT AUDITED: {len(skipped - audited)} packages, of which the registry here tells no vulnerabilities")
    return 1 if known else 2 if skipped - audited and os.environ.get("AUDIT") == "strict" else 0


def _audit(lock: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner=off",
               "--format=json", "--requirement", str(lock)]  # fmt: skip
    for identifier in _ignored():
        command += ["--ignore-vuln", identifier]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: list[dict[str, object]] = json.loads(done.stdout)["dependencies"]
    return found


def _ignored() -> list[str]:
    """Return the vulnerabilities that do not concern penult: one a line, and behind # why."""
    if not _IGNORED.exists():
        return []
    return [words[0] for line in _IGNORED.read_text().splitlines() if (words := line.partition("#")[0].split())]


if __name__ == "__main__":
    sys.exit(main())
