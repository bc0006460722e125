"""Options of the commands, each declared once as a field of a frozen dataclass.

`setting` makes the field. A field `drain_lead` is the flag --drain-lead, a variable, a key of the TOML file and a line
of --help, and its value is checked. A flag wins over a variable, a variable over the file, the file over the default.
The variable is PENULT_DRAIN_LEAD for `penult serve`. Other commands have a prefix of their own, as in
PENULT_TRAIN_EPOCHS, and print which variables they read.

jsonargparse 4.53, tyro 1.0, simple-parsing 0.1 and pydantic-settings 2.16 were tried first. Their imports add 0.2 to
0.9 s to a `penult train --help` of 0.2 s. The first three print errors of several lines, or without the word that was
probably meant. None knows what a manifest records.
"""

import argparse
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self, get_args

from penult.console import say
from penult.nearest import did_you_mean

_PENULT = "PENULT_"
_SWITCHES = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
_NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    Path: "a path in quotes",
}
_METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


@dataclass(frozen=True)
class Option:
    """What an option is, beside the name, type and default of its field."""

    # A noun phrase or an imperative of at most 12 words, with the unit.
    help: str
    choices: tuple[Any, ...] = ()
    # The range of a number. A default outside it has a meaning of its own.
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    # The heading of --help that begins with this option.
    group: str = ""
    # Whether the manifest records the value. A function returns what it records instead.
    recorded: bool | Callable[[Any], object] = True
    # Whether the manifest leaves the default out, so that runs without the option are recorded as before there was one.
    omits_default: bool = False
    metavar: str = ""
    # Reads text, for a type that is more than a number. Raises argparse.ArgumentTypeError.
    read: Callable[[str], Any] | None = None
    # What --help shows as the default, if not the default itself.
    shown: str = ""
    # The option's name, if not the field's, and an older name that works as well.
    name: str = ""
    alias: str = ""
    # An argument without a flag, of the command line only.
    is_positional: bool = False

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value of the right type, "" if nothing is."""
        if self.choices and value not in self.choices:
            known = [str(choice) for choice in self.choices]
            return f"is not one of {', '.join(known)}{did_you_mean(str(value), known)}"
        if not isinstance(value, (int, float)):
            return ""
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        fits = (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )
        limits = [f"{word} {limit}" for word, limit in bounds.items() if limit is not None]
        return "" if fits else f"must be {' and '.join(limits or ['finite'])}"


def setting(default: Any, help_: str, **option: Any) -> Any:
    """Declare an option, as a dataclass field; `option` are the other attributes of Option."""
    return field(default=default, metadata={"option": Option(help_, **option)})


@dataclass(frozen=True)
class Settings(ABC):
    """Base of the options of a command. Values are checked when one is made, however that is."""

    PREFIX: ClassVar[str] = _PENULT
    HAS_JSON: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check every value against its declaration; raise the command's error."""
        for f in declared(type(self)):
            value = getattr(self, f.name)
            if value is not None and value != f.default and (problem := option_of(f).problem(value)):
                raise self.error(f"{flag(f)} {value} {problem}")

    @staticmethod
    @abstractmethod
    def error(message: str) -> Exception:
        """Return the exception that rejects settings with this line."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add a flag for each setting, --config, and --json if the command has an answer."""
        cls.add_flags(parser)
        parser.add_argument("--config", type=Path, metavar="FILE.toml", help="read settings from a TOML file")
        if cls.HAS_JSON:
            parser.add_argument("--json", action="store_true", help="print the result as JSON")

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Add a flag for each setting. Those left out are absent from the namespace."""
        place: Any = parser
        for f in declared(cls):
            option, kind = option_of(f), _kind(f)
            place = parser.add_argument_group(option.group) if option.group else place
            more: dict[str, Any] = {"help": _help(f), "type": partial(_read, f)}
            if option.is_positional:
                nargs = None if f.default is MISSING else "?"
                place.add_argument(f.name, metavar=f.name.upper(), nargs=nargs, **more)
                continue
            if kind is bool:
                more = {"help": _help(f), "action": argparse.BooleanOptionalAction}
            elif option.choices:
                more["choices"] = option.choices
            else:
                more["metavar"] = option.metavar or _METAVARS[kind]
            place.add_argument(flag(f), dest=f.name, default=argparse.SUPPRESS, **more)
            if option.alias:
                more["help"] = argparse.SUPPRESS
                place.add_argument(_dashed(option.alias), dest=f.name, default=argparse.SUPPRESS, **more)

    @classmethod
    def load(cls, arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the settings of a command line, variables and --config; raise the command's error."""
        return cls(**cls.given(vars(arguments), arguments.config, environment))

    @classmethod
    def given(
        cls, flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> dict[str, Any]:
        """Merge flags, variables and a file, in falling precedence.

        Args:
            flags: The values of a namespace, by field; other names are left alone.
            file: A TOML file, in which an unknown key is refused.
            environment: The variables of the process.

        Returns:
            The settings that any of them gives, by field.

        """
        keys = cls._keys()
        found: dict[str, Any] = {}
        for source in (cls._from_file(file) if file else {}, cls._from_environment(environment)):
            found |= {f.name: cls._converted(f, source[key]) for key, f in keys.items() if key in source}
        return found | {f.name: flags[f.name] for f in declared(cls) if flags.get(f.name) is not None}

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return settings of values by name, as Python code gives them; None is the default. Variables are not read.

        Raises the command's error.
        """
        known = {f.name: f for f in declared(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise cls.error(f"there is no option {unknown[0]!r}{did_you_mean(unknown[0], known) or '; see --help'}")
        given = {name: cls._converted(known[name], value) for name, value in values.items() if value is not None}
        return cls(**cls.given(given, environment={}))

    def as_json(self) -> dict[str, object]:
        """Return the values that a manifest records."""
        values = {
            f.name: (option_of(f).recorded, getattr(self, f.name))
            for f in declared(type(self))
            if not (option_of(f).omits_default and getattr(self, f.name) == f.default)
        }
        return {name: how(value) if callable(how) else value for name, (how, value) in values.items() if how}

    @classmethod
    def _keys(cls) -> "dict[str, Field[Any]]":
        """Return the fields by their names in variables and files; the newer names are last, and win."""
        named = [f for f in declared(cls) if not option_of(f).is_positional]
        return {alias: f for f in named if (alias := option_of(f).alias)} | {_name(f): f for f in named}

    @classmethod
    def _from_file(cls, path: Path) -> dict[str, Any]:
        import tomllib

        try:
            values = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise cls.error(f"--config {path}: {error}") from error
        if unknown := sorted(set(values) - set(cls._keys())):
            guess = did_you_mean(unknown[0], cls._keys()) or "; see --help"
            raise cls.error(f"{path}: unknown setting {unknown[0]!r}{guess}")
        return values

    @classmethod
    def _from_environment(cls, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the settings among the variables.

        Beside a Service called penult, Kubernetes sets PENULT_PORT=tcp://… in every pod: that is no setting of ours.
        """
        variables = {name: cls.PREFIX + name.upper() for name in cls._keys()}
        found = {name: environment[each] for name, each in variables.items() if each in environment}
        found = {name: value for name, value in found.items() if not value.startswith("tcp://")}
        if found and cls.PREFIX != _PENULT:  # a server logs its settings
            say(f"penult: settings from {', '.join(variables[name] for name in found)}")
        return found

    @classmethod
    def _converted(cls, f: "Field[Any]", value: Any) -> Any:
        try:
            return _read(f, value)
        except argparse.ArgumentTypeError as error:
            raise cls.error(f"{flag(f)}: {error}") from None


def declared(kind: type[Settings]) -> list["Field[Any]"]:
    """Return the fields that `setting` made."""
    return [f for f in fields(kind) if "option" in f.metadata]


def option_of(f: "Field[Any]") -> Option:
    """Return what a field declares."""
    option: Option = f.metadata["option"]
    return option


def flag(f: "Field[Any]") -> str:
    """Return the flag of a field, as in --drain-lead."""
    return _dashed(_name(f))


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _name(f: "Field[Any]") -> str:
    return option_of(f).name or f.name


def _kind(f: "Field[Any]") -> Any:
    """Return the type of a field, int of `int | None`."""
    return next((each for each in get_args(f.type) if each is not NoneType), f.type)


def _read(f: "Field[Any]", value: Any) -> Any:
    """Return text of a flag or variable, or a value of TOML, as the field's type; raise ArgumentTypeError."""
    option, kind = option_of(f), _kind(f)
    try:
        if option.read:
            return option.read(str(value))
        if kind is bool:
            return value if isinstance(value, bool) else _SWITCHES[value.lower()]
        converted = kind(value)
        # TOML has types of its own: true is no port, 1.5 no count of images, 5 no address.
        if not isinstance(value, str) and (isinstance(value, bool) or converted != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError):
        raise argparse.ArgumentTypeError(f"{value!r} is not {_NOUNS[kind]}") from None
    if option.choices and (problem := option.problem(converted)):
        raise argparse.ArgumentTypeError(f"{value!r} {problem}")
    return converted


def _help(f: "Field[Any]") -> str:
    """Return the line of --help, with the default last."""
    switch = {True: "on", False: "off"} if _kind(f) is bool else {}
    default = "" if f.default in (MISSING, None, "", Path()) else switch.get(f.default, f.default)
    shown = option_of(f).shown or str(default)
    return (option_of(f).help + (f" ({shown})" if shown else "")).replace("%", "%%")
