"""Name the command that installs an extra of penult, for messages about a missing library."""


def how_to_install(*extras: str) -> str:
    """Return the command that adds these extras; each may be several of them, separated by commas.

    penult is on no package registry: the command is for the folder of its source.
    """
    lines = " or ".join(f"pip install '.[{extra}]'" for extra in extras)
    return f"in the folder of penult's source, run {lines}"
