"""Shares on the command line, as 5% or as 0.05."""

import argparse

_LARGEST = 0.5


def share(text: str) -> float:
    """Read a share of at most one half, such as 5% or 0.05; raise ArgumentTypeError."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no share up to 50%; give one like 1% or 0.01")
    # 5.3% and 0.053 are the same number.
    return round(value, 9)
