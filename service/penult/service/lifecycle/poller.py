"""Poll the model repository: load new versions, drain removed ones.

The repository is polled every `every_s` seconds. Of each model, the newest version that passes every check is served,
or the pinned versions. A candidate is loaded, verified and warmed up beside what is served, on a thread of its own.
Then new requests use it, and the old version ends with its last request. A candidate that fails changes nothing, and
is tried again only after one of its files has changed. A candidate that changed since the last poll may still be being
copied, and waits for the next poll.

Loading and freeing share that one thread and never overlap, which CUDA graphs need (cuda_session.py).
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penult.bundle.errors import BundleError, PenultError
from penult.bundle.naming import meant_repository
from penult.bundle.reader import Bundle, read_bundle, read_signed_manifest
from penult.bundle.signature import ANYBODY, Trust
from penult.process_limits import give_back
from penult.service.errors import ConfigError, ModelRefused, NotFound
from penult.service.lifecycle.deployer import ModelDeployer
from penult.service.models.loader import ServedModel
from penult.service.models.registry import LOADING, UNAVAILABLE
from penult.service.models.scanner import RepositorySnapshot, Stamp, scan, stamp

log = logging.getLogger(__name__)

# A disk that failed may work again without any file having changed.
_DISK_RETRY_S = 15.0
_UNLOADED = "UNLOADED"

Load = Callable[[Bundle, ServedModel | None], ServedModel]


@dataclass(frozen=True)
class _Refusal:
    stamp: Stamp
    reason: str
    until: float


class RepositoryPoller:
    """Keeps the served models equal to those of the repository."""

    def __init__(
        self, root: Path, pins: Mapping[str, Sequence[int]], load: Load, deployer: ModelDeployer,
        trust: Trust = ANYBODY, shadows: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Load nothing yet; `load` blocks, gets what was served so far, and raises BundleError or ConfigError.

        `shadows`: of each model, the version that is deployed beside the one that clients get.
        """
        self._root = root
        self._pins, self._shadows = pins, shadows or {}
        self._load = load
        self._deployer = deployer
        self._trust = trust
        self._registry = deployer.registry
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._turn = asyncio.Lock()
        self._served: dict[ServedModel, Stamp] = {}
        self._seen: dict[tuple[str, int], Stamp] = {}
        self._refused: dict[tuple[str, int], _Refusal] = {}
        self._unsettled: set[tuple[str, int]] = set()
        self._unloaded: set[str] = set()
        self._draining: set[asyncio.Task[None]] = set()
        self._said: set[str] = set()

    async def start(self) -> None:
        """Load all models, then serve them at once; raise BundleError if no model can be served."""
        if not self._root.is_dir():
            raise BundleError(
                "MODELS_MISSING", f"{self._root} is not a folder; name the model repository with --models"
            )
        async with self._turn:
            found = await self._on_loader(scan, self._root)
            if not found.models:
                meant = await self._on_loader(meant_repository, self._root)
                empty = f"{self._root} holds no model; run make demo, or penult train PHOTOS --out {self._root}/NAME"
                raise BundleError("MODELS_EMPTY", meant or empty)
            self._complain(found)
            self._check_shadows(found)
            chosen = [model for name in found.models for model in await self._choose(name, found.models[name], True)]
            if all(self._is_shadow(model) for model in chosen):
                raise BundleError("MODELS_REFUSED", f"no model in {self._root} can be served; the lines above say why")
            for model in chosen:
                self._deployer.deploy(model)
            self._registry.is_started = True

    async def run(self, every_s: float) -> None:
        """Poll for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.poll()

    async def poll(self) -> None:
        """Poll once, unless nothing is served yet."""
        if not self._registry.is_started:
            return
        try:
            await self._poll()
        except Exception:  # a bug must not end the polling: the loaded models stay, and the log has the error
            log.exception("polling the model repository failed; the loaded models stay")

    async def load(self, name: str) -> None:
        """Load a model now, even if it was rejected or unloaded before; raise NotFound, ModelRefused."""
        async with self._turn:
            found = await self._on_loader(scan, self._root)
            if name not in found.models:
                raise NotFound("MODEL_UNKNOWN", "the repository has no such model; train or copy it first")
            self._unloaded.discard(name)
            self._refused = {key: refusal for key, refusal in self._refused.items() if key[0] != name}
            await self._update(name, found.models[name], force=True)
        for version in [versions[0] for versions in self._wanted(name, found.models[name]) if versions]:
            refusal = self._refused.get((name, version))
            if refusal and self._shadows.get(name) != version:  # what clients get is there without a shadow
                raise ModelRefused(refusal.reason, f"version {version} was refused ({refusal.reason}); see the log")

    async def unload(self, name: str) -> None:
        """Stop serving a model until load() is called; return after its last request. Raise NotFound."""
        async with self._turn:
            if not self._registry.versions(name):
                raise NotFound("MODEL_UNKNOWN", "no such model is served")
            self._unloaded.add(name)
            models = [model for model in self._served if model.name == name]
            draining = [self._unload(model) for model in models]
            for model in models:
                self._registry.note(name, model.version, UNAVAILABLE, _UNLOADED)
        del models, model
        await asyncio.wait(draining)

    async def rebuild(self, model: ServedModel) -> bool:
        """Load a model again from its folder; return True if that worked, or if it is not served now."""
        async with self._turn:
            if model not in self._served:
                return True
            marks = await self._on_loader(stamp, self._root / model.name / str(model.version))
            anew = await self._try(model.name, model.version, marks)
            if not anew:
                return False
            self._deployer.deploy(anew)
            self._unload(model)
            return True

    async def close(self) -> None:
        """Wait for models that are draining; loads in progress end with the process."""
        if self._draining:
            await asyncio.wait(self._draining)
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def _poll(self) -> None:
        async with self._turn:
            try:
                found: RepositorySnapshot = await self._on_loader(scan, self._root)
            except OSError as error:
                self._say([f"{self._root} cannot be read ({error.strerror}); what is loaded is served on"])
                return
            self._complain(found)
            known = {*found.models, *(model.name for model in self._served), *(name for name, _ in self._refused)}
            for name in sorted(known - self._unloaded - set(found.unreadable)):
                await self._update(name, found.models.get(name, []), force=False)

    def _complain(self, found: RepositorySnapshot) -> None:
        lines = [f"{name} cannot be read; what is loaded of it is served on" for name in found.unreadable]
        lines += [f"{name} is a link to nowhere, so it is not served; mend or remove it" for name in found.dangling]
        lines += [
            f"{name!r} is not served: a model name is 1 to 64 letters, digits, '_' and '-'; rename the folder"
            for name in found.misnamed
        ]
        for name, pinned in self._pins.items():
            missing = sorted(set(pinned).difference(found.models.get(name, [])))
            lines += [f"{name} version {version} is pinned, and not there" for version in missing]
        self._say(lines)

    def _say(self, lines: list[str]) -> None:
        """Log each problem once, when it begins."""
        for line in lines:
            if line not in self._said:
                log.warning(line)
        self._said = set(lines)

    async def _update(self, name: str, present: list[int], force: bool) -> None:
        """Bring a model up to date: deploy new versions first, then unload old ones."""
        before = {model for model in self._served if model.name == name}
        chosen = await self._choose(name, present, force)
        is_none = all(self._is_shadow(model) for model in chosen)
        if is_none and any((name, version) in self._unsettled for version in present):
            return  # the next poll tries them; until then a version without a folder is better than none
        for model in chosen:
            if model not in before:
                self._deployer.deploy(model)
        for model in before.difference(chosen):
            self._unload(model)
        self._tidy(name, present)

    def _tidy(self, name: str, present: list[int]) -> None:
        """Forget versions whose folders are gone."""
        self._registry.keep_notes(name, set(present))
        for key in [key for key in self._seen if key[0] == name and key[1] not in present]:
            del self._seen[key]
            self._refused.pop(key, None)
            self._unsettled.discard(key)

    async def _choose(self, name: str, present: list[int], force: bool) -> list[ServedModel]:
        """Return the versions to serve, loaded. `force` loads folders that may still be being copied."""
        chosen = [await self._best(name, versions, force) for versions in self._wanted(name, present)]
        return [model for model in chosen if model]

    def _wanted(self, name: str, present: list[int]) -> list[list[int]]:
        """Return, for each version to serve, the candidates, best first."""
        shadow = self._shadows.get(name)
        others = [version for version in present if version != shadow]
        beside = [[shadow]] if shadow in present else []
        if name not in self._pins:
            return [others[::-1], *beside]
        return [*([version] if version in others else [] for version in self._pins[name]), *beside]

    def _is_shadow(self, model: ServedModel) -> bool:
        return self._shadows.get(model.name) == model.version

    def _check_shadows(self, found: RepositorySnapshot) -> None:
        """Raise ConfigError for a shadow that is not there, or without another version that clients get."""
        for name, version in self._shadows.items():
            present = found.models.get(name, [])
            numbers = ", ".join(map(str, present))
            if not present:
                why = f"{self._root} holds no model {name}; there is {', '.join(found.models)}"
            elif version not in present:
                why = f"{name} has no version {version}; there is {numbers}"
            elif present == [version]:
                why = f"{name} has no other version, which clients would get; train or copy one"
            else:
                continue
            raise ConfigError("SHADOW", f"--shadow {name}={version}: {why}")

    async def _best(self, name: str, candidates: list[int], force: bool) -> ServedModel | None:
        """Return the first candidate that is served already, or passes every check now."""
        for version in candidates:
            served = next((m for m in self._served if (m.name, m.version) == (name, version)), None)
            marks = await self._on_loader(stamp, self._root / name / str(version))
            if served and await self._is_same(served, marks):
                return served
            if self._is_worth_trying(name, version, marks, force):
                served = await self._try(name, version, marks) or served
            if served:
                return served
        return None

    async def _is_same(self, served: ServedModel, marks: Stamp) -> bool:
        """Return True if a folder still holds the served version, with the same signer; touched files do not matter."""
        if self._served[served] != marks:
            folder = self._root / served.name / str(served.version)
            try:
                found = await self._on_loader(read_signed_manifest, folder, self._trust)
            except (BundleError, OSError):
                return False
            if (found.manifest, found.signer) != (served.manifest, served.signer):
                return False
            self._served[served] = marks
        return True

    def _is_worth_trying(self, name: str, version: int, marks: Stamp, force: bool) -> bool:
        is_settled = force or self._seen.get((name, version)) == marks
        self._seen[name, version] = marks
        (self._unsettled.discard if is_settled else self._unsettled.add)((name, version))
        refusal = self._refused.get((name, version))
        if refusal and refusal.stamp == marks and time.monotonic() < refusal.until:
            return False
        return is_settled

    async def _try(self, name: str, version: int, marks: Stamp) -> ServedModel | None:
        """Load a candidate; if it is rejected, log the reason and remember it."""
        self._registry.note(name, version, LOADING)
        before = next(iter(self._registry.versions(name)[::-1]), None)
        try:
            started = time.perf_counter()
            model: ServedModel = await self._on_loader(self._read_and_load, name, version, before)
        except Exception as error:
            if isinstance(error, ConfigError) and not self._registry.is_started:
                raise  # the device does not work; the model is not at fault
            self._refuse(name, version, marks, error)
            return None
        self._announce(model, time.perf_counter() - started)
        self._refused.pop((name, version), None)
        self._served[model] = marks
        return model

    def _read_and_load(self, name: str, version: int, before: ServedModel | None) -> ServedModel:
        return self._load(read_bundle(self._root / name, version, self._trust), before)

    def _refuse(self, name: str, version: int, marks: Stamp, error: Exception) -> None:
        reason, message, until = "INTERNAL", "a bug of penult's own; please report the lines above", float("inf")
        if isinstance(error, PenultError):
            reason, message = error.reason, error.message
        elif isinstance(error, OSError):
            reason, message = "FILE_UNREADABLE", f"{error.filename or 'a file'} cannot be read ({error.strerror})"
            until = time.monotonic() + _DISK_RETRY_S
        else:
            log.error("loading %s version %d failed", name, version, exc_info=error)
        before = self._refused.get((name, version))
        self._refused[name, version] = _Refusal(marks, reason, until)
        self._registry.note(name, version, UNAVAILABLE, reason)
        if before and (before.stamp, before.reason) == (marks, reason):
            return  # logged and counted already
        log.error("refused %s version %d: %s (%s)", name, version, message, reason)
        # The status page may have other readers than the log, and must not name folders of this machine.
        self._deployer.refused(name, version, f"{message.replace(f'{self._root}{os.sep}', '')} ({reason})")

    def _unload(self, model: ServedModel) -> "asyncio.Task[None]":
        """Start to drain a model; nothing here refers to it afterwards."""
        del self._served[model]
        task = asyncio.create_task(self._drain(self._deployer.unload(model), model.name, model.version))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        return task

    async def _drain(self, drained: Awaitable[None], name: str, version: int) -> None:
        started = time.perf_counter()
        await drained
        del drained
        log.info("%s version %d is no longer served; drained in %.1f s", name, version, time.perf_counter() - started)
        await self._on_loader(give_back)

    async def _on_loader(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._loader, act, *arguments)

    def _announce(self, model: ServedModel, seconds: float) -> None:
        plan = f" ({model.plan.threads} threads a run, {model.plan.callers} runs at a time)" if model.plan else ""
        signed = f"; signed by key {model.signer}" if model.signer else ""
        log.info(
            "loaded %s version %d in %.1f s: %s on %s%s, %d classes, golden answers within %.0e%s",
            model.name, model.version, seconds, model.manifest.architecture, model.session.provider, plan,
            len(model.manifest.classes), model.golden_difference, signed,
        )  # fmt: skip
        # Without trusted keys no model is signed by one: the server logs that once, for all.
        if self._trust.keys and not model.signer:
            log.warning(
                "%s version %d is not signed by a trusted key; it is served because of --allow-unsigned",
                model.name, model.version,
            )  # fmt: skip
