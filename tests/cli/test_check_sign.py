"""Who vouches for a bundle: keys, `penult sign`, `penult check`, and what a server takes up once it trusts a key."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from penult.bundle.errors import BundleError
from penult.bundle.reader import read_bundle
from penult.bundle.signature import ANYBODY, KeyUnusable, new_key, read_private_key, trust
from penult.cli import main
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc


class Key(NamedTuple):
    """The files of a key pair, and what it is called."""

    private: Path
    public: Path
    id: str


@pytest.fixture
def make_key(tmp_path: Path) -> Callable[[str], Key]:
    """Make a key: make_key("ours")."""

    def make(name: str) -> Key:
        path = tmp_path / name
        id_ = new_key(path)
        return Key(path, path.with_name(f"{name}.pub"), id_)

    return make


@pytest.fixture
def ours(make_key) -> Key:
    """The key that is trusted."""
    return make_key("ours")


@pytest.fixture
def light(publish_brightness, tmp_path: Path) -> Path:
    """A model folder, light, that holds version 1, unsigned."""
    publish_brightness(tmp_path / "models")
    return tmp_path / "models" / "light"


def _sign(model: Path, key: Key, *options: str) -> None:
    assert main(["sign", str(model), "--key", str(key.private), *options]) == 0


def _refused(model: Path, key: Key, **options: bool) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(model, trust=trust([key.public], **options))
    assert "\n" not in caught.value.message
    return caught.value.reason


def test_a_signed_bundle_names_its_signer(light: Path, ours: Key, make_key):
    """A bundle is believed by whoever trusts its key, among other keys too, and says whose it is."""
    _sign(light, ours)
    assert (light / "1" / "manifest.sig").stat().st_size == 64
    assert read_bundle(light, trust=trust([make_key("other").public, ours.public])).signer == ours.id
    found = read_bundle(light)
    assert (found.signer, found.is_signed) == ("", True)


@pytest.mark.parametrize("linked", ["model", "version"])
def test_commands_go_through_links(light: Path, ours: Key, tmp_path: Path, capsys, linked: str):
    """`penult sign` and `check` call a linked model by the link's name, and sign what it leads to, on any file system."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        real = Path(shutil.copytree(light, Path(folder) / "light.v2"))
        link, target = {"model": ("pets", real), "version": ("pets/7", real / "1")}[linked]
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(target)
        _sign(tmp_path / "pets", ours)
        assert main(["check", str(tmp_path / "pets"), "--trusted-key", str(ours.public), "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        version = 7 if linked == "version" else 1
        assert (told["model"], told["version"], told["signer"]) == ("pets", version, ours.id)
        assert read_bundle(tmp_path / "pets", trust=trust([ours.public])).signer == ours.id
        assert list(real.rglob(".signing-*")) == list((tmp_path / "pets").rglob(".signing-*")) == []


def test_what_no_trusted_key_signed_is_refused(light: Path, ours: Key, make_key):
    """No signature, another key's, a cut or lengthened or changed one: each is refused by its name."""
    assert _refused(light, ours) == "SIGNATURE_MISSING"
    _sign(light, make_key("theirs"))
    assert _refused(light, ours) == "SIGNATURE_WRONG"
    _sign(light, ours)
    path = light / "1" / "manifest.sig"
    good = path.read_bytes()
    for wrong in (b"", good[:-1], good + b"\0", bytes([good[0] ^ 1]) + good[1:]):
        path.write_bytes(wrong)
        assert _refused(light, ours) == "SIGNATURE_WRONG"
    path.write_bytes(good)
    assert read_bundle(light, trust=trust([ours.public])).signer == ours.id


def test_a_signature_vouches_for_every_file(light: Path, ours: Key):
    """Whatever changes after signing, one space of the manifest or a file with a digest to match, is refused."""
    _sign(light, ours)
    manifest = light / "1" / "manifest.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good + b" ")
    assert _refused(light, ours) == "SIGNATURE_WRONG"
    values = json.loads(good)
    values["temperatures"]["dense"] = 2.0
    manifest.write_text(json.dumps(values))
    assert read_bundle(light).manifest.temperatures["dense"] == 2.0  # whole, to those who trust anybody
    assert _refused(light, ours) == "SIGNATURE_WRONG"
    manifest.write_bytes(good)
    golden = light / "1" / "golden.npz"
    golden.write_bytes(golden.read_bytes()[:-1] + b"?")
    assert _refused(light, ours) == "FILE_DIGEST"


def test_a_wrong_signature_is_refused_before_the_manifest_is_parsed(light: Path, ours: Key):
    """A manifest that is no JSON at all is first of all one that nobody signed."""
    _sign(light, ours)
    (light / "1" / "manifest.json").write_bytes(b"{" * 100_000)
    assert _refused(light, ours) == "SIGNATURE_WRONG"


def test_unsigned_bundles_may_be_let_in_but_no_wrong_signature(light: Path, ours: Key, make_key):
    """--allow-unsigned is about signatures that lack; one that is wrong stays out."""
    assert read_bundle(light, trust=trust([ours.public], is_unsigned_allowed=True)).signer == ""
    _sign(light, make_key("theirs"))
    assert _refused(light, ours, is_unsigned_allowed=True) == "SIGNATURE_WRONG"


def test_a_signature_that_is_a_link_is_refused(light: Path, ours: Key, tmp_path: Path):
    """manifest.sig is a plain file like all others."""
    _sign(light, ours)
    path = light / "1" / "manifest.sig"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert _refused(light, ours) == "FILE_LINK"


def test_a_copy_of_a_signed_bundle_is_signed(light: Path, ours: Key):
    """A bundle copied to another version, or name, stays vouched for: the manifest does not hold them."""
    _sign(light, ours)
    shutil.copytree(light / "1", light / "7")
    assert read_bundle(light, 7, trust([ours.public])).signer == ours.id


@pytest.mark.system
def test_openssl_agrees(light: Path, ours: Key):
    """OpenSSL itself, given the public key, verifies manifest.sig; and refuses it for other bytes."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    _sign(light, ours)

    def verified(manifest: Path) -> bool:
        command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", ours.public, "-in", manifest,
                   "-sigfile", light / "1" / "manifest.sig"]  # fmt: skip
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert verified(light / "1" / "manifest.json")
    assert not verified(light / "1" / "golden.npz")


@pytest.mark.system
def test_keys_of_openssh_and_openssl_serve(light: Path, tmp_path: Path):
    """Keys made by ssh-keygen and by openssl sign, and their public halves are trusted."""
    if not (shutil.which("openssl") and shutil.which("ssh-keygen")):
        pytest.skip("needs openssl and ssh-keygen")
    ssh, pem = tmp_path / "ssh", tmp_path / "pem"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh], check=True)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", pem], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", pem, "-pubout", "-out", f"{pem}.pub"], check=True)
    for path in (ssh, pem):
        key = Key(path, path.with_name(f"{path.name}.pub"), "")
        _sign(light, key)
        assert len(read_bundle(light, trust=trust([key.public])).signer) == 16


@pytest.mark.system
def test_a_key_with_a_passphrase_needs_it(light: Path, tmp_path: Path, monkeypatch, capsys):
    """An encrypted key signs with PENULT_KEY_PASSPHRASE, and without it one line says so."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    path = tmp_path / "locked"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:open sesame", "-out", path]
    subprocess.run(command, check=True, capture_output=True)
    assert main(["sign", str(light), "--key", str(path)]) == 1
    assert "PENULT_KEY_PASSPHRASE" in capsys.readouterr().err
    monkeypatch.setenv("PENULT_KEY_PASSPHRASE", "open sesame")
    assert main(["sign", str(light), "--key", str(path)]) == 0


def test_keys_are_private_and_never_overwritten(ours: Key, tmp_path: Path):
    """A new key is readable by its owner only; a file that is there stays what it is."""
    assert ours.private.stat().st_mode & 0o777 == 0o600
    before = ours.private.read_bytes(), ours.public.read_bytes()
    with pytest.raises(KeyUnusable):
        new_key(ours.private)
    ours.private.rename(tmp_path / "moved")
    with pytest.raises(KeyUnusable):
        new_key(ours.private)
    assert not ours.private.exists()
    assert ((tmp_path / "moved").read_bytes(), ours.public.read_bytes()) == before


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_told(text: str, tmp_path: Path):
    """A file that holds no key is refused in one line, as a public and as a private key."""
    path = tmp_path / "key"
    path.write_text(text)
    for read in (lambda: trust([path]), lambda: read_private_key(path)):
        with pytest.raises(KeyUnusable) as caught:
            read()
        assert "\n" not in caught.value.message
        assert str(path) in caught.value.message


@pytest.mark.system
def test_other_kinds_of_keys_are_refused(ours: Key, tmp_path: Path):
    """An RSA key is named as such; a private key where a public one belongs gets advice."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    path = tmp_path / "rsa"
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", path], check=True, capture_output=True)
    with pytest.raises(KeyUnusable, match="ed25519"):
        read_private_key(path)
    with pytest.raises(KeyUnusable, match=r"the \.pub file"):
        trust([ours.private])


def test_signing_refuses_what_is_damaged(light: Path, ours: Key, capsys):
    """Nobody vouches for a bundle whose files are not what its manifest says."""
    golden = light / "1" / "golden.npz"
    golden.write_bytes(golden.read_bytes()[:-1] + b"?")
    assert main(["sign", str(light), "--key", str(ours.private)]) == 1
    assert "restore the bundle" in capsys.readouterr().err
    assert not (light / "1" / "manifest.sig").exists()


def test_a_newcomer_signs_with_one_command(light: Path, tmp_path: Path, capsys):
    """`penult sign MODEL --new-key FILE` makes the key and signs; `penult check --trusted-key` says whose it is."""
    path = tmp_path / "first"
    assert main(["sign", str(light), "--new-key", str(path)]) == 0
    made, signed = capsys.readouterr().out.splitlines()
    assert f"{path}.pub" in made
    assert main(["check", str(light), "--trusted-key", f"{path}.pub", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["signed"]
    assert told["signer"] in made
    assert told["signer"] in signed


def test_a_mistyped_model_leaves_no_key_behind(tmp_path: Path, capsys):
    """Where there is nothing to sign, no key is made, so that the same command works once the name is right."""
    assert main(["sign", str(tmp_path / "nowhere"), "--new-key", str(tmp_path / "key")]) == 1
    assert "holds no version" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_check_tells_what_is_known(light: Path, ours: Key, capsys, monkeypatch):
    """Unsigned, signed by somebody, by a trusted key, by no trusted key: each has its own words."""
    assert main(["check", str(light)]) == 0
    assert "Not signed." in capsys.readouterr().out
    monkeypatch.setenv("PENULT_TRUSTED_KEY", str(ours.public))
    assert main(["check", str(light)]) == 1
    assert "SIGNATURE_MISSING" in capsys.readouterr().err
    _sign(light, ours)
    assert main(["check", str(light)]) == 0
    assert f"trusted key {ours.id}" in capsys.readouterr().out
    monkeypatch.delenv("PENULT_TRUSTED_KEY")
    assert main(["check", str(light)]) == 0
    assert "--trusted-key" in capsys.readouterr().out


def test_sign_without_a_model_or_a_key_says_what_to_give(capsys):
    """`penult sign` alone is told what it needs."""
    assert main(["sign"]) == 1
    assert "--new-key" in capsys.readouterr().err


def _told(stub) -> list[tuple[int, bool]]:
    return [(model.version.version, model.is_signed) for model in stub.ListModels(pb.ListModelsRequest()).models]


def _eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_a_server_serves_signed_versions_only(light, ours, publish_brightness, start_server, connect, samples):
    """With a trusted key, an unsigned version is refused, serves once it is signed, and forged ones never do."""
    _sign(light, ours)
    server = start_server(light.parent, "--watch-s", "0.1", "--trusted-key", str(ours.public))
    stub = penult_pb2_grpc.PenultServiceStub(connect(server.target))
    assert _told(stub) == [(1, True)]
    info = [key for key, value in samples(server.http).items() if key[0] == "penult_model_info" and value]
    assert [dict(key[1:])["signed"] for key in info] == ["yes"]

    publish_brightness(light.parent)
    _eventually(lambda: "SIGNATURE_MISSING" in server.log.read_text())
    assert _told(stub) == [(1, True)]
    _sign(light, ours)
    _eventually(lambda: _told(stub) == [(2, True)])

    shutil.copytree(light / "2", light / ".3")
    manifest = light / ".3" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"dark"', b'"evil"'))
    (light / ".3").rename(light / "3")
    _eventually(lambda: "SIGNATURE_WRONG" in server.log.read_text())
    assert _told(stub) == [(2, True)]
    assert samples(server.http)["penult_reloads_total", ("outcome", "refused")] == 2


def test_a_server_notices_that_a_served_version_was_signed(light, ours, start_server, connect, samples):
    """A version served unsigned by leave is taken up anew when its signature comes: answers say so from then on."""
    options = ("--watch-s", "0.1", "--trusted-key", str(ours.public), "--allow-unsigned")
    server = start_server(light.parent, *options)
    stub = penult_pb2_grpc.PenultServiceStub(connect(server.target))
    assert _told(stub) == [(1, False)]
    assert "light version 1 is not signed by a trusted key" in server.log.read_text()
    _sign(light, ours)
    _eventually(lambda: _told(stub) == [(1, True)])


@pytest.mark.server
def test_a_server_does_not_start_with_a_broken_key(light: Path, ours: Key, run_python):
    """A --trusted-key that is no key ends the start with one line, instead of trusting anybody."""
    done = run_python(
        "-m", "penult.cli", "serve", "--models", str(light.parent), "--port", "0", "--metrics-port", "0",
        "--trusted-key", str(ours.private),
    )  # fmt: skip
    assert done.returncode == 1
    assert "the .pub file" in done.stderr


def test_nobody_is_trusted_by_default():
    """Without keys every bundle is believed: what the log, the metric and the answers then say is `not signed`."""
    assert ANYBODY.keys == ()
