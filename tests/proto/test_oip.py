"""The vendored protocol: Triton's file holds all that KServe's does, so clients of either find what they know."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor

HERE = Path(__file__).parent
VENDORED = HERE.parent.parent / "proto" / "penult" / "oip"
# Model control differs between the two in KServe's own file too; Triton's clients send Triton's.
OTHER_IN_TRITON = {
    "RepositoryModelLoadRequest",
    "RepositoryModelLoadResponse",
    "RepositoryModelUnloadRequest",
    "RepositoryModelUnloadResponse",
}


def compiled(folder: Path, name: str, scratch: Path) -> FileDescriptor:
    """Compile a .proto and what it imports into a pool of its own: two files of one package cannot share one."""
    out = scratch / "set.bin"
    arguments = [f"-I{folder}", f"--descriptor_set_out={out}", "--include_imports", name]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, timeout=300)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        pool.Add(file)
    return pool.FindFileByName(name)


def fields(message: Descriptor) -> dict[str, tuple]:
    """Return what decides a message's bytes: each field's name, number, type, repetition and oneof."""
    return {
        f.name: (
            f.number, f.type, f.is_repeated, f.message_type.full_name if f.message_type else None,
            f.containing_oneof.name if f.containing_oneof else None,
        )
        for f in message.fields
    }  # fmt: skip


def messages(file: FileDescriptor) -> dict[str, Descriptor]:
    """Return every message of a file, nested ones too, by its name within the package."""
    found, left = {}, list(file.message_types_by_name.values())
    while left:
        message = left.pop()
        found[message.full_name.removeprefix(file.package + ".")] = message
        left += message.nested_types
    return found


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    """Triton's file, which is served."""
    return compiled(VENDORED, "grpc_service.proto", tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def kserve(tmp_path_factory):
    """KServe's file, the reference."""
    return compiled(HERE, "kserve_predict_v2.proto", tmp_path_factory.mktemp("kserve"))


def test_every_method_of_kserve_is_there(triton, kserve):
    """The service has the same full name, and each of KServe's methods with the same messages."""
    (ours,), (theirs,) = triton.services_by_name.values(), kserve.services_by_name.values()
    assert ours.full_name == theirs.full_name == "inference.GRPCInferenceService"
    assert len(theirs.methods) >= 8

    def signature(method) -> tuple:
        types = method.input_type.full_name, method.output_type.full_name
        return (*types, method.client_streaming, method.server_streaming)

    has = {method.name: signature(method) for method in ours.methods}
    assert {m.name: has.get(m.name) for m in theirs.methods} == {m.name: signature(m) for m in theirs.methods}


def test_every_field_of_kserve_is_there(triton, kserve):
    """Each of KServe's messages is in Triton's file with the same fields, numbers and types, but for model control."""
    has, wanted = messages(triton), messages(kserve)
    assert len(wanted) >= 20
    different = {name for name, message in wanted.items() if not fields(message).items() <= fields(has[name]).items()}
    assert different == OTHER_IN_TRITON


def forget_json_names(messages) -> None:
    """Take away what the compiler derives, and generated code leaves out."""
    for message in messages:
        for each in message.field:
            each.ClearField("json_name")
        forget_json_names(message.nested_type)


CARRIED = """
import tritonclient.grpc.service_pb2 as service, tritonclient.grpc.model_config_pb2 as config
print(service.DESCRIPTOR.serialized_pb.hex(), config.DESCRIPTOR.serialized_pb.hex())
"""


@pytest.mark.parametrize(("place", "name"), [(0, "grpc_service.proto"), (1, "model_config.proto")])
def test_it_is_what_tritonclient_carries(triton_python, tmp_path, place, name):
    """File by file, the messages, enums and services are those that the unmodified client was generated from."""
    done = subprocess.run([triton_python, "-c", CARRIED], capture_output=True, text=True, check=True, timeout=300)
    theirs = descriptor_pb2.FileDescriptorProto.FromString(bytes.fromhex(done.stdout.split()[place]))
    ours = descriptor_pb2.FileDescriptorProto()
    compiled(VENDORED, name, tmp_path).CopyToProto(ours)
    forget_json_names(ours.message_type)
    assert (ours.package, ours.service) == (theirs.package, theirs.service)
    for kind in ("message_type", "enum_type"):
        has, wanted = ({each.name: each for each in getattr(file, kind)} for file in (ours, theirs))
        assert has == wanted
