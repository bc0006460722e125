"""Find the tensors of a network in a file, below the wrappers and prefixes that training tools put around them.

Nothing is guessed. What is taken off is taken off only if all tensors of the network then fit by name and shape.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

State = Mapping[str, torch.Tensor]

# The keys under which checkpoints hold a state dict, and the attributes in which tools hold a network.
WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")
PREFIXES = ("module", "model", "net", "backbone", "encoder", "_orig_mod", "body", "timm_model")
_DEPTH = 4


@dataclass(frozen=True)
class Candidate:
    """A reading of a file.

    Attributes:
        wrappers: The keys that lead to the tensors.
        prefix: What was taken off their names, with its last dot.
        state: The tensors, under the names that are left.
        outside: The names in the file without the prefix.
    """

    wrappers: tuple[str, ...]
    prefix: str
    state: State
    outside: tuple[str, ...]

    def note(self, shown: str) -> str:
        """Return a line that says what was taken off; "" if nothing was. `shown` is how it names the file."""
        parts = [f"under the key {'.'.join(self.wrappers)!r}"] if self.wrappers else []
        parts += [f"without the prefix {self.prefix!r}"] if self.prefix else []
        if not parts:
            return ""
        unused = f"; {len(self.outside)} others are not used, such as {self.outside[0]}" if self.outside else ""
        return f"note: {shown}: the tensors {' and '.join(parts)} fit{unused}"


def candidates(content: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield every reading of a file's content, those with less taken off first."""
    for wrappers, state in _unwrapped(content):
        for prefix in _prefixes(state):
            yield Candidate(
                wrappers,
                prefix,
                {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)},
                tuple(key for key in state if not key.startswith(prefix)),
            )


def mismatches(own: State, loaded: State, classifier: tuple[str, ...]) -> Iterator[str]:
    """Yield what does not fit: missing, superfluous and wrongly shaped tensors. The classifier may be there or not."""
    # Old weights lack the batch counters, which eval mode does not use.
    yield from (f"{key} is missing" for key in own if key not in loaded and not key.endswith("num_batches_tracked"))
    yield from (f"the network has no {key}" for key in loaded if key not in own and not key.startswith(classifier))
    for key in own:
        if key in loaded and (found := shape(loaded[key])) != tuple(own[key].shape):
            yield (
                f"{key} has shape {found}, not {tuple(own[key].shape)}"
                if found is not None
                else f"{key} is not a tensor"
            )


def shape(value: object) -> tuple[int, ...] | None:
    """Return the shape of a tensor; None for anything else."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _unwrapped(content: Mapping[str, Any], wrappers: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        yield wrappers, content
    if len(wrappers) < _DEPTH:
        for key in WRAPPERS:
            inside = content.get(key)
            if isinstance(inside, Mapping) and all(isinstance(name, str) for name in inside):
                yield from _unwrapped(inside, (*wrappers, key))


def _prefixes(state: State) -> list[str]:
    """Return the chains of known prefixes that some names have, shortest first, with "" first of all."""
    found = [""]
    for chain in found:  # which grows
        if chain.count(".") < _DEPTH:
            found += [f"{chain}{each}." for each in PREFIXES if any(key.startswith(f"{chain}{each}.") for key in state)]
    return found
