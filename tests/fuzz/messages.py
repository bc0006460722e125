"""Reading messages on arbitrary bytes: values or a PenultError. See fuzzing.py."""

import atheris
from tests.fuzz.fuzzing import INSTRUMENTED, fuzz

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.checks import check_message
    from tests.fuzz.seeds import messages

if __name__ == "__main__":
    fuzz("messages", check_message, messages())
