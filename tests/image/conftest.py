"""A container engine of the tests' own: podman as `docker`, on namespaces and a storage that nobody else sees.

What stands in for what: podman with crun for Docker's engine (same commands, same image format, same restrictions), and
a Debian made by debootstrap for python:3.12-slim, since no registry of images is needed then. Addresses of mirrors come
from this machine's own configuration, as they stand when the tests run.
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
BASE = "penult-base:debian"
NEEDED = ("podman", "crun", "debootstrap", "nsenter", "unshare", "ip", "iptables")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE_PACKAGES = "python3,python3-venv,python-is-python3"
# Private mounts and a private loopback; it ends with us, since its standard input does. crun refuses the mixed control
# groups that some machines have, and the containers' network plugins keep state outside the folders they are given.
# Images live in memory, about 1.5 GB: that is quick, and gone in an instant. Its folder has a short name, whatever
# TMPDIR says: podman refuses a runroot of more than 50 characters where it cleans up, and everything then takes 20 s more.
STORE = "/media"
HOLD = f"""
mkdir -p {STORE} && mount -t tmpfs -o size=6g,mode=711 tmpfs {STORE}
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni
ip link set lo up
echo held
exec cat
"""


class Engine:
    """Runs commands that find podman under the names `docker` and `podman`."""

    def __init__(self, folder: Path, namespaces: int, cache: Path) -> None:
        self._namespaces = namespaces
        (folder / "bin").mkdir()
        (folder / "bin" / "docker").symlink_to(shutil.which("podman"))
        (folder / "net.d").mkdir()
        network = {"cniVersion": "0.4.0", "name": "podman", "plugins": [
            {"type": "bridge", "bridge": "penult0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
             "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.88.0.0/16"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": True}}]}  # fmt: skip
        (folder / "net.d" / "podman.conflist").write_text(json.dumps(network))
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE}/graph"\nrunroot = "{STORE}/run"\n'
        )
        # A process may not raise its limits here, nor make control groups; both are the engine's to give elsewhere.
        (folder / "containers.conf").write_text(f"""
            [containers]
            cgroups = "disabled"
            default_ulimits = ["nofile=1024:4096", "nproc=2048:2048"]
            [engine]
            runtime = "crun"
            cgroup_manager = "cgroupfs"
            events_logger = "none"
            lock_type = "file"
            tmp_dir = "{STORE}/libpod"
            [network]
            network_config_dir = "{folder}/net.d"
        """)
        self._environment = os.environ | {
            "CONTAINERS_CONF": f"{folder}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "BUILDAH_ISOLATION": "chroot", "BUILDAH_FORMAT": "docker", "TMPDIR": str(cache), "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }  # fmt: skip

    def run(self, script: str, cwd: Path = ROOT, *, with_registries: bool = False, check: bool = True, **env: str):
        """Run a bash script in our namespaces; its result. `with_registries`: on the machine's network instead."""
        spaces = ["--mount"] if with_registries else ["--mount", "--net"]
        result = subprocess.run(
            ["nsenter", "--target", str(self._namespaces), *spaces, "bash", "-euo", "pipefail", "-c",
             f"cd {shlex.quote(str(cwd))}\n{script}"],
            env=self._environment | env, capture_output=True, text=True, timeout=570, check=False,
        )  # fmt: skip
        if check and result.returncode:
            raise AssertionError(f"{script}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
        return result


def why_not() -> str:
    """Return why containers cannot run here; empty where they can."""
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        return f"{', '.join(missing)} not installed; .ci/run installs Debian's packages"
    if os.geteuid():
        return "needs root, for namespaces of its own"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="session")
def cache() -> Path:
    """A folder that outlives the tests, ours alone: the base image, and packages that were downloaded."""
    folder = Path(tempfile.gettempdir()) / f"penult-image-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    assert (status.st_uid, status.st_mode & 0o77) == (os.geteuid(), 0), f"{folder} is not ours alone"
    return folder


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Engine]:
    """An engine without images; it ends with its containers, and leaves nothing."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("engine")
    hold = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-eu", "-c", HOLD]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n", "the namespaces could not be set up"
            one = Engine(folder, holder.pid, cache)
            yield one
            one.run("podman rm --all --force --time 0; podman volume prune --force", check=False)
        finally:
            holder.stdin.close()
            holder.wait(30)
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def base_tar(cache: Path) -> Path:
    """A Debian with Python, as a tar file; made once, from where this machine has its own packages."""
    if reason := why_not():
        pytest.skip(reason)
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "").strip('"')
    if release["ID"] != "debian" or not suite:
        pytest.skip("needs Debian, whose debootstrap knows how to make another")
    done = cache / f"{suite}.tar"
    if not done.exists():
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _debootstrap(suite, Path(work))
            (Path(work) / "base.tar").rename(done)
    return done


def _debootstrap(suite: str, work: Path) -> None:
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {suite}",
         "Component: main"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    if not asked.stdout.strip():
        pytest.skip(f"apt has no lists of {suite} here; apt-get update brings them")
    mirror = asked.stdout.split()[0]
    command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", suite, work / "root", mirror]
    made = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert made.returncode == 0, made.stdout[-2000:]
    left_out = [
        f"--exclude=./{path}" for path in ("var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*", "dev/*")
    ]
    subprocess.run(["tar", "-C", work / "root", *left_out, "-cf", work / "base.tar", "."], check=True)


@pytest.fixture(scope="session")
def built(engine: Engine, base_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`penult:cpu`, built by the docs' own command; the folder with its bill of materials."""
    folder = tmp_path_factory.mktemp("sbom")
    engine.run(f"podman import {base_tar} {BASE}")
    flags = [f"--build-arg=PYTHON_IMAGE={BASE}", "--network=host"]
    mirrors = folder.parent / "network.env"
    names = ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "http_proxy", "https_proxy", "no_proxy")
    mirrors.write_text("".join(f"{name}='{os.environ[name]}'\n" for name in names if name in os.environ))
    flags.append(f"--secret=id=network,src={mirrors}")
    if AUTHORITIES.exists():
        flags.append(f"--secret=id=ca,src={AUTHORITIES}")
    engine.run(
        "make image IMAGES=cpu", with_registries=True,
        BUILDER="podman", IMAGE_FLAGS=" ".join(flags), SBOM_DIR=str(folder),
    )  # fmt: skip
    mirrors.unlink()
    return folder


@pytest.fixture(scope="session")
def desk(built: Path, publish_brightness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the docs' commands run: the checkout's `.venv`, models/pets, PHOTOS/dark/…, the bill."""
    folder = tmp_path_factory.mktemp("desk")
    folder.chmod(0o755)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    shutil.copy(built / "sbom-cpu.json", folder)
    for name, colour in (("dark", (10, 10, 60)), ("bright", (250, 200, 180))):
        (folder / "PHOTOS" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder / "PHOTOS" / name / "1.png")
    publish_brightness(folder / "models", "pets")
    return folder
