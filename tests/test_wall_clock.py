"""The time of day decides nothing."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wall_clock_decides_nothing():
    """Service and client ask for the time of day only to tell it, in status, statistics and traces; whether a new
    certificate is valid, which is a matter of dates; and to convert the deadline that gRPC's core gives by it.
    """  # fmt: skip
    found = {
        path.name
        for path in [*ROOT.glob("service/penult/service/**/*.py"), *ROOT.glob("service/penult/client/*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"time", "time_ns", "now", "utcnow", "today"}
        and isinstance(node.value, ast.Name) and node.value.id in {"time", "datetime", "date"}
    }  # fmt: skip
    assert found <= {"metric_window.py", "tls.py", "model_stats.py", "rpc.py", "tracing.py"}
