"""The decoder on arbitrary bytes: an image or an ImageError. See fuzzing.py."""

import atheris
from tests.fuzz.fuzzing import INSTRUMENTED, fuzz

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.checks import check_decoder
    from tests.fuzz.seeds import images

if __name__ == "__main__":
    fuzz("decoder", check_decoder, images())
