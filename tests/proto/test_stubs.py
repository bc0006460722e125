"""The wire: checked-in stubs are fresh, and the .proto keeps its house style."""

import re
import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

HERE = Path(__file__).parent
PROTO = HERE.parent.parent / "proto"


def test_stubs_are_fresh(tmp_path: Path):
    """Regenerating gives byte for byte what is checked in."""
    subprocess.run([sys.executable, str(PROTO / "generate.py"), str(tmp_path)], check=True, timeout=300)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*"))
    assert len(made) >= 12
    assert [path for path in made if (tmp_path / path).read_bytes() != (PROTO / path).read_bytes()] == []


def test_enums_start_unspecified():
    """Every enum's zero is UNSPECIFIED and every value carries the enum's name."""
    from penult.v1 import penult_pb2

    for enum in penult_pb2.DESCRIPTOR.enum_types_by_name.values():
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert enum.values[0].name == prefix + "UNSPECIFIED"
        assert all(value.name.startswith(prefix) for value in enum.values)


def test_fields_in_units_say_so():
    """Every duration on the wire is in milliseconds and named so."""
    from penult.v1 import penult_pb2

    assert all(field.name.endswith("_ms") for field in penult_pb2.Timings.DESCRIPTOR.fields)


def wire(file: FileDescriptor) -> set[str]:
    """Return a line per field, enum value and RPC: what decides bytes and JSON, without the field's own name."""
    messages = [*file.message_types_by_name.values()]
    messages += [nested for message in messages for nested in message.nested_types]
    fields = [(message, field) for message in messages for field in message.fields]
    return {
        *(f"{message.full_name} {field.number} {_kind(field)} {field.json_name}" for message, field in fields),
        *(f"{e.full_name} {v.number} {v.name}" for e in file.enum_types_by_name.values() for v in e.values),
        *(
            f"{m.full_name} {m.input_type.name} {m.client_streaming} {m.output_type.name} {m.server_streaming}"
            for service in file.services_by_name.values()
            for m in service.methods
        ),
    }


def _kind(field: FieldDescriptor) -> str:
    typed = field.message_type or field.enum_type
    group = field.containing_oneof.name if field.containing_oneof else "-"
    return f"{typed.full_name if typed else field.type} {'repeated' if field.is_repeated else 'single'} {group}"


def test_the_wire_of_0_2_0_is_kept():
    """Clients generated from the .proto of 0.2.0 send and read the same bytes; wire.txt was written by that version."""
    from penult.v1 import penult_pb2

    released = set((HERE / "wire.txt").read_text().splitlines())
    assert len(released) >= 140
    assert released - wire(penult_pb2.DESCRIPTOR) == set()
