"""Clients in other languages: the .proto files generate code, and compilers accept what penult.proto becomes.

| language | generator | compiler |
| --- | --- | --- |
| C++ | protobuf-compiler, protobuf-compiler-grpc | g++ with libgrpc++-dev: messages and service |
| Java | protobuf-compiler | javac with libprotobuf-java: messages |
| Go | protoc-gen-go | go with golang-google-protobuf-dev, which protoc-gen-go needs: messages |
| Rust | librust-prost-build-dev | cargo: messages |
| TypeScript | npm: @bufbuild/protoc-gen-es and ts-proto | tsc of the same lock: messages and service |
| C# | protobuf-compiler | none, since Debian has no Google.Protobuf: names of properties are checked |
| Swift | none, since no package of Debian, npm or PyPI was found: names are checked | none |

Unless it says npm, a package is Debian's. A test without its generator or compiler is skipped and names the package.
"""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from penult.v1 import penult_pb2

ROOT = Path(__file__).parent.parent.parent
PROTO = ROOT / "proto"
OURS = [f"-I{PROTO}", "penult/v1/penult.proto"]
OIP = [f"-I{PROTO / 'penult' / 'oip'}", "grpc_service.proto", "model_config.proto"]  # vendored: generated only
LOCK = ROOT / "locks" / "typescript"
CRATES = "/usr/share/cargo/registry"


def need(package: str, path: str) -> None:
    """Skip the test if a program, or a file or folder that a pattern names, is not installed."""
    if not (shutil.which(path) or any(Path("/").glob(path.lstrip("/")))):
        pytest.skip(f"needs {path} (Debian's package {package})")


def protoc(*arguments: str) -> None:
    """Run Debian's protoc; that of grpcio-tools is newer and renames what the older one leaves to clash."""
    need("protobuf-compiler", "protoc")
    run("protoc", *arguments)


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command and show what it prints, if it fails."""
    environment = os.environ | variables
    done = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def named(folder: Path, pattern: str) -> list[str]:
    """Return the generated files, of which there is at least one."""
    found = sorted(map(str, folder.rglob(pattern)))
    assert found
    return found


@pytest.mark.system
def test_cpp(tmp_path):
    """Messages and service compile."""
    need("protobuf-compiler-grpc", "grpc_cpp_plugin")
    plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
    (tmp_path / "oip").mkdir()
    protoc(f"--cpp_out={tmp_path / 'oip'}", *OIP)
    protoc(f"--cpp_out={tmp_path}", f"--grpc_out={tmp_path}", plugin, *OURS)
    sources = named(tmp_path / "penult", "*.cc")
    assert len(sources) == 2
    need("g++", "g++")
    need("libgrpc++-dev", "/usr/include/grpcpp/grpcpp.h")
    for source in sources:
        run("g++", "-std=c++17", "-fsyntax-only", f"-I{tmp_path}", source)


@pytest.mark.system
def test_java(tmp_path):
    """Messages compile."""
    (tmp_path / "oip").mkdir()
    protoc(f"--java_out={tmp_path / 'oip'}", *OIP)
    protoc(f"--java_out={tmp_path}", *OURS)
    sources = named(tmp_path / "penult", "*.java")
    need("default-jdk-headless", "javac")
    need("libprotobuf-java", "/usr/share/java/protobuf.jar")
    run("javac", "-proc:none", "-cp", "/usr/share/java/protobuf.jar", "-d", tmp_path / "classes", *sources)


@pytest.mark.system
def test_go(tmp_path):
    """Messages compile."""
    need("protoc-gen-go", "protoc-gen-go")
    out = tmp_path / "src"
    out.mkdir()
    names = dict.fromkeys(OIP[1:], "example/oip") | {OURS[1]: "example/penult"}
    options = [f"--go_opt=M{name}={package}" for name, package in names.items()]
    protoc(f"--go_out={out}", *options, *OIP)
    protoc(f"--go_out={out}", *options, *OURS)
    named(out / "example" / "penult", "*.pb.go")
    need("golang-go", "go")
    need("golang-google-protobuf-dev", "/usr/share/gocode/src/google.golang.org/protobuf")
    packages = f"{tmp_path}:/usr/share/gocode"
    run("go", "vet", "example/penult", GO111MODULE="off", GOPATH=packages, GOCACHE=str(tmp_path / "cache"))


_BUILD = """fn main() {
    prost_build::compile_protos(&[OURS], &[PROTO]).unwrap();
    prost_build::compile_protos(&[OIP], &[VENDORED]).unwrap();
}
"""


@pytest.mark.system
def test_rust(tmp_path):
    """prost generates messages that compile; its crates come from Debian, without the network."""
    need("protobuf-compiler", "protoc")
    need("librust-prost-build-dev", f"{CRATES}/prost-build-*")
    need("cargo", "cargo")
    for folder in ("src", ".cargo"):
        (tmp_path / folder).mkdir()
    source = f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{CRATES}"\n'
    (tmp_path / ".cargo" / "config.toml").write_text(source)
    package = '[package]\nname = "generated"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n'
    crates = '[dependencies]\nprost = "*"\n[build-dependencies]\nprost-build = "*"\n'
    (tmp_path / "Cargo.toml").write_text(package + crates)
    paths = {"OURS": PROTO / OURS[1], "PROTO": PROTO, "VENDORED": PROTO / "penult" / "oip"}
    paths["OIP"] = paths["VENDORED"] / "grpc_service.proto"
    constants = "".join(f'const {name}: &str = "{path}";\n' for name, path in paths.items())
    (tmp_path / "build.rs").write_text(constants + _BUILD)
    (tmp_path / "src" / "lib.rs").write_text('include!(concat!(env!("OUT_DIR"), "/penult.v1.rs"));\n')
    run("cargo", "check", "--offline", "--quiet", cwd=tmp_path, CARGO_TARGET_DIR=str(tmp_path / "target"))


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The packages of locks/typescript, installed once below .tools."""
    need("npm", "npm")
    folder = (
        ROOT / ".tools" / f"typescript-{hashlib.sha256((LOCK / 'package-lock.json').read_bytes()).hexdigest()[:12]}"
    )
    if not (folder / ".ready").exists():
        shutil.copytree(LOCK, folder, dirs_exist_ok=True)
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", cwd=folder)
        (folder / ".ready").touch()
    return folder / "node_modules"


@pytest.mark.system
@pytest.mark.parametrize(("plugin", "options"), [("es", "target=ts"), ("ts_proto", "useAsyncIterable=true")])
def test_typescript(tmp_path, node_modules, plugin, options):
    """Messages and service of both generators compile, as strict as tsc can be asked to be."""
    for name, files in (("oip", OIP), ("ours", OURS)):
        (tmp_path / name).mkdir()
        binary = f"--plugin=protoc-gen-{plugin}={node_modules / '.bin' / f'protoc-gen-{plugin}'}"
        protoc(binary, f"--{plugin}_out={tmp_path / name}", f"--{plugin}_opt={options}", *files)
    (tmp_path / "node_modules").symlink_to(node_modules)
    strict = ["--strict", "--noEmit", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    run(node_modules / ".bin" / "tsc", *strict, "--target", "es2022", *named(tmp_path / "ours", "*.ts"), cwd=tmp_path)


@pytest.mark.system
def test_csharp(tmp_path):
    """Messages are generated, and the generator renames no property but that with its class's name."""
    for files in (OIP, OURS):
        protoc(f"--csharp_out={tmp_path}", *files)
    assert len(named(tmp_path, "*.cs")) == 3
    assert set(re.findall(r"^    public \S+ (\w+_) {", (tmp_path / "Penult.cs").read_text(), flags=re.M)) == {
        "Neighbours_"
    }


# What swift-protobuf gives another name, or backticks, as a property of a message or as a case (its NamingUtils.swift).
_SWIFT = """
allCases debugDescription description dynamicType hashValue init isInitialized none protoMessageName rawValue self some
unknownFields associatedtype class deinit enum extension fileprivate func import inout internal let open operator
private protocol public rethrows static struct subscript typealias var break case continue default defer do else
fallthrough for guard if in repeat return switch where while as catch false is nil super throw throws true try
"""


def test_swift():
    """No property or case of swift-protobuf has a reserved name or that of another, hasX and clearX included."""
    reserved = set(_SWIFT.split())
    for message in penult_pb2.DESCRIPTOR.message_types_by_name.values():
        names = [camel(part.name) for part in (*message.fields, *message.oneofs) if part.name[0] != "_"]
        names += [f"{verb}{name[0].upper()}{name[1:]}" for name in names for verb in ("has", "clear")]
        assert len(names) == len(set(names))
        assert not reserved & set(names)
    for enum in penult_pb2.DESCRIPTOR.enum_types_by_name.values():
        prefix = len(enum.values[0].name.removesuffix("UNSPECIFIED"))
        assert not reserved & {camel(value.name[prefix:].lower()) for value in enum.values}


def camel(name: str) -> str:
    """Return top_k as topK."""
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)
