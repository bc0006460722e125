"""Generate the Python stubs of the .proto files beside them: `python proto/generate.py OUT`.

OUT is the folder that takes `penult/v1/...` and `penult/oip/...`; `proto` itself for `make proto`, a scratch folder for
the test that compares them with what is checked in.
"""

import pathlib
import re
import shutil
import sys

import grpc_tools
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).parent
# Vendored files import one another by bare name, and other programs' stubs register them under it: in a process that
# loads both, the same name and content are one file, while two names for the same messages would be an error.
VENDORED = pathlib.Path("penult/oip")


def generate(out: pathlib.Path) -> None:
    """Write *_pb2.py, *_pb2_grpc.py and their .pyi for every .proto below this folder; raise on a protoc error."""
    for proto in sorted(ROOT.glob("penult/v*/*.proto")):
        _compile(proto, ROOT, out)
    target = out / VENDORED
    target.mkdir(parents=True, exist_ok=True)
    for proto in sorted((ROOT / VENDORED).glob("*.proto")):
        _compile(proto, ROOT / VENDORED, target)
    for stub in target.glob("*_pb2*.py*"):
        package = ".".join(VENDORED.parts)
        stub.write_text(re.sub(r"^import (\w+_pb2) as", rf"from {package} import \1 as", stub.read_text(), flags=re.M))


def _compile(proto: pathlib.Path, root: pathlib.Path, out: pathlib.Path) -> None:
    plugins = pathlib.Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={shutil.which('protoc-gen-mypy', path=str(plugins))}",
        f"--plugin=protoc-gen-mypy_grpc={shutil.which('protoc-gen-mypy_grpc', path=str(plugins))}",
        f"-I{root}",
        f"-I{pathlib.Path(grpc_tools.__file__).parent / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        str(proto.relative_to(root)),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit(f"protoc failed on {proto}")


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]))
