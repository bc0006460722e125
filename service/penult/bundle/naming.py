"""What folders of models are called: the one place that derives names and versions from paths.

A model's name is the last part of the path that leads to its folder, and a version's number likewise. Folders may be
links, to anywhere and over several links: the link's own name counts, never its target's. So a folder has the same name
for a server, which lists the repository, and for a command, which is given a path.
"""

import os
from pathlib import Path

from penult.bundle.errors import BundleError
from penult.bundle.manifest import MANIFEST_NAME, check_model_name, is_model_name, parse_version
from penult.nearest import nearest

_MAX_SHOWN = 5


def model_name(folder: Path) -> str:
    """Return the name of the model whose folder this is, as "pets" of models/pets; raise BundleError for no name."""
    return check_model_name(last_part(folder))


def versions(model_folder: Path) -> list[int]:
    """Return the versions in a folder like models/NAME, oldest first; an absent folder has none."""
    if not model_folder.is_dir():
        return []
    found = (parse_version(entry.name) for entry in model_folder.iterdir() if entry.is_dir())
    return sorted(version for version in found if version is not None)


def name_to_publish(folder: Path) -> str:
    """Return the model's name for a folder that will get a version; raise BundleError where it should be another."""
    name = model_name(folder)
    above = parent(folder)
    if is_version(folder) or (_is_model(above) and parse_version(name)):
        raise BundleError(
            "MODEL_FOLDER", f"{folder} would be a version; did you mean --out {above}? penult numbers versions itself"
        )
    if not versions(folder) and (models := models_in(folder)):
        raise BundleError(
            "MODEL_FOLDER", f"{folder} is a repository, with {_listed(models)}; did you mean --out {folder / 'NAME'}?"
        )
    return name


def is_version(folder: Path) -> bool:
    """Return whether a folder is one version of a model."""
    return (folder / MANIFEST_NAME).is_file()


def models_in(folder: Path) -> list[str]:
    """Return the names of the models in a repository, sorted; a folder that cannot be read has none."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if is_model_name(entry.name) and _is_model(entry))
    except OSError:
        return []


def meant_model(folder: Path) -> str:
    """Return what was probably meant by a folder without versions, given as a model; "" if nothing is near."""
    if is_version(folder):
        return f"{folder} is one version, not a model; did you mean {parent(folder)} --version {last_part(folder)}?"
    if models := models_in(folder):
        hint = (
            f"did you mean {folder / models[0]}?" if len(models) == 1 else f"name one of them, as {folder / models[0]}"
        )
        return f"{folder} is a repository of models ({_listed(models)}), not a model; {hint}"
    if near := nearest(last_part(folder), models_in(parent(folder))):
        return f"{folder} holds no version; did you mean {parent(folder) / near}?"
    return ""


def meant_repository(folder: Path) -> str:
    """Return what was probably meant by a folder without models, given as a repository; "" if nothing is near."""
    if is_version(folder):
        return f"{folder} is one version of a model, not a repository; did you mean --models {parent(parent(folder))}?"
    if _is_model(folder):
        return f"{folder} is one model, not a repository of models; did you mean --models {parent(folder)}?"
    return ""


def last_part(folder: Path) -> str:
    """Return the last part of a path; of "." and of paths that end in "..", the folder's own name."""
    return folder.name if folder.name not in ("", "..") else Path(os.path.realpath(folder)).name


def parent(folder: Path) -> Path:
    """Return the folder of a path, without following links."""
    return folder.parent if folder.name not in ("", "..") else Path(os.path.realpath(folder)).parent


def _is_model(folder: Path) -> bool:
    try:
        return any(is_version(folder / str(version)) for version in versions(folder))
    except OSError:
        return False


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_SHOWN])
    return shown if len(names) <= _MAX_SHOWN else f"{shown} and {len(names) - _MAX_SHOWN:,} more"
