"""The wire: checked-in stubs are fresh, and the .proto keeps its house style."""

import re
import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parent.parent.parent / "proto"


def test_stubs_are_fresh(tmp_path: Path):
    """Regenerating gives byte for byte what is checked in."""
    subprocess.run([sys.executable, str(PROTO / "generate.py"), str(tmp_path)], check=True, timeout=60)
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
