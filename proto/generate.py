"""Generate the Python stubs of the .proto files beside them: `python proto/generate.py OUT`.

OUT is the folder that takes `penult/v1/...`; `proto` itself for `make proto`, a scratch folder for the test that
compares them with what is checked in.
"""

import pathlib
import shutil
import sys

import grpc_tools
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).parent


def generate(out: pathlib.Path) -> None:
    """Write *_pb2.py, *_pb2_grpc.py and their .pyi for every .proto below this folder; raise on a protoc error."""
    plugins = pathlib.Path(sys.executable).parent
    for proto in sorted(ROOT.glob("penult/**/*.proto")):
        arguments = [
            "protoc",
            f"--plugin=protoc-gen-mypy={shutil.which('protoc-gen-mypy', path=str(plugins))}",
            f"--plugin=protoc-gen-mypy_grpc={shutil.which('protoc-gen-mypy_grpc', path=str(plugins))}",
            f"-I{ROOT}",
            f"-I{pathlib.Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            str(proto.relative_to(ROOT)),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed on {proto}")


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]))
