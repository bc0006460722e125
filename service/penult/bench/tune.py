"""`penult bench --tune`: start servers, measure one setting at a time under the same load, and write the best.

The search tries CPU mode and batch size, then the delay, then threads, each from the best so far. A full grid would
take an hour for the same result. The current settings come first. Of two equal settings the first one wins, so that
noise alone changes nothing.
"""

import asyncio
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penult.bench import load, record, requests, show
from penult.bench.config_file import write_keys
from penult.bench.measure import Report
from penult.bench.own_server import OwnServer
from penult.bench.settings import BenchError, BenchSettings, LoadSettings, TuneSettings
from penult.bench.trials import RULES, Trial, Values, choose, gain, groups, mean, words
from penult.client import Client
from penult.console import StatusLine, print_error, say
from penult.service.config import ServeConfig

_START_S = 5.0
# An open loop has no number of its own: any batch may occur.
_OPEN_IN_FLIGHT = 128


def tune(settings: BenchSettings) -> int:
    """Try, choose, write; return 0, or 1 if interrupted. Raises BenchError, RequestFailed."""
    wanted = settings.tune
    assert wanted is not None
    search = _Search(settings.load, wanted)
    best, trials = search.run(), search.trials
    if best is None:
        return print_error("interrupted; nothing is written")
    written = _write(settings, wanted, trials, best)
    if settings.as_json:
        print(json.dumps(_numbers(settings, wanted, trials, best)))
    else:
        print(f"best: {_found(trials, best)}\nby the rule: {RULES[wanted.goal]}")
    for path in written:
        say(f"written: {path}")
    if not wanted.config and best.values:
        say("--config FILE.toml would write them for penult serve --config")
    return 0


class _Search:
    """The trials of one tuning, in order; the first is of the current settings."""

    def __init__(self, load_settings: LoadSettings, wanted: TuneSettings) -> None:
        self._load, self._wanted = load_settings, wanted
        self._current = vars(ServeConfig(**ServeConfig.given({}, wanted.config_if_there)))
        self._prepared: requests.Requests | None = None
        self._provider = ""
        self.trials: list[Trial] = []
        self.is_interrupted = False

    def run(self) -> Trial | None:
        """Try everything and return the best; None if SIGINT came first."""
        goal = self._wanted.goal
        self._try({})
        in_flight = self._load.in_flight or _OPEN_IN_FLIGHT
        wanted = groups(self._provider, len(os.sched_getaffinity(0)), in_flight * self._load.images_per_request)
        self._print_duration(wanted)
        for group in wanted:
            base = choose(self.trials, goal).values if self.trials else {}
            for combination in itertools.product(*group.values()):
                values = base | dict(zip(group, combination, strict=True))
                if not self.is_interrupted and not self._is_known(values):
                    self._try(values)
        return None if self.is_interrupted else self._confirmed(choose(self.trials, goal))

    def _is_known(self, values: Values) -> bool:
        """Return True if these settings equal some that were tried."""
        return any(self._current | values == self._current | trial.values for trial in self.trials)

    def _confirmed(self, best: Trial) -> Trial | None:
        """Measure the best and the current settings once more, as the best of many is partly luck."""
        if not best.values:
            return best
        again = [self._try({}), self._try(best.values)]
        if self.is_interrupted or None in again:
            return None
        finalists = [mean(one, other) for one, other in zip((self.trials[0], best), again, strict=True) if other]
        self.trials = [finalists[0], *(finalists[1] if trial is best else trial for trial in self.trials[1:-2])]
        return choose(finalists, self._wanted.goal)

    def _print_duration(self, wanted: list[dict[str, list[Any]]]) -> None:
        count = sum(math.prod(map(len, group.values())) for group in wanted) + 2
        each_s = _START_S + self._load.warmup_s + self._load.duration_s
        say(f"up to {count} more trials, about {count * each_s / 60:.1f} minutes; Ctrl-C stops")

    def _try(self, values: Values) -> Trial | None:
        """Start a server, measure it, end it; return None after SIGINT."""
        line = StatusLine(f"{len(self.trials) + 1}: {words(values)}")
        try:
            with OwnServer(self._wanted, values) as server:
                report = self._measure(replace(self._load, target=server.target, metrics=server.metrics), line)
        except KeyboardInterrupt:
            self.is_interrupted = True
            return None
        finally:
            line.close()
        self.is_interrupted = report.is_interrupted
        if self.is_interrupted:
            return None
        self._provider = report.model.provider
        trial = _trial(values, report)
        self.trials.append(trial)
        say("  ".join(_row(len(self.trials), trial)))
        return trial

    def _measure(self, settings: LoadSettings, line: StatusLine) -> Report:
        if self._prepared is None:
            with Client(settings.target, settings.timeout_s) as client:
                model = client.get_model(settings.model, settings.version)
            self._prepared = requests.prepare(settings, model.preprocess.crop)
        report = asyncio.run(load.run(settings, self._prepared, show.shown_on(line)))
        if report.latency is None and not report.is_interrupted:
            raise BenchError("no request was answered; try penult bench without --tune to see why")
        return report


def _found(trials: Sequence[Trial], best: Trial) -> str:
    if not best.values:
        return f"the current settings (1): none of the {len(trials) - 1} others was better"
    return f"{words(best.values)} ({gain(trials[0], best)})"


def _trial(values: Values, report: Report) -> Trial:
    assert report.latency is not None
    clean = not (report.errors or report.item_errors or report.not_sent)
    return Trial(
        values, report.good_images_per_s, report.latency.p50_ms, report.latency.p99_ms, report.server_cpu_ms_per_image,
        report.server_batch_images, clean,
    )  # fmt: skip


def _row(number: int, trial: Trial) -> Iterator[str]:
    """Yield the cells of a trial's line."""
    yield f"{number:3d}"
    yield f"{trial.images_per_s:7.1f} images/s"
    yield f"p50 {trial.p50_ms:6.1f} ms"
    yield f"p99 {trial.p99_ms:6.1f} ms"
    if trial.server_cpu_ms_per_image is not None:
        yield f"{trial.server_cpu_ms_per_image:5.1f} CPU-ms/image"
    yield words(trial.values) + ("" if trial.is_clean else " (some failed)")


def _numbers(settings: BenchSettings, wanted: TuneSettings, trials: Sequence[Trial], best: Trial) -> dict[str, Any]:
    load_settings: dict[str, Any] = record.plain(settings.load)
    del load_settings["target"], load_settings["metrics"]  # those of servers that have ended
    return {
        "date": record.now(), "machine": record.machine(), "goal": wanted.goal, "rule": RULES[wanted.goal],
        "load": load_settings, "chosen": record.plain(best.values), "best": record.plain(best),
        "trials": record.plain(trials),
    }  # fmt: skip


def _write(settings: BenchSettings, wanted: TuneSettings, trials: Sequence[Trial], best: Trial) -> list[Path]:
    """Write the settings found, tune.json and tune.png, if requested."""
    written = []
    if wanted.config:
        # Also if there is nothing to set.
        note = f"{record.now()[:10]}, penult bench --tune, {RULES[wanted.goal]}: {_found(trials, best)}"
        if write_keys(wanted.config, best.values, note):
            written.append(wanted.config)
        else:
            say(f"{wanted.config} is unchanged")
    if settings.out:
        numbers = _numbers(settings, wanted, trials, best)
        written += record.write(settings.out, "tune", numbers, lambda: _draw(settings.load, trials, best))
    return written


def _draw(load_settings: LoadSettings, trials: Sequence[Trial], best: Trial) -> bytes:
    from penult.bench import picture

    return picture.tune(load_settings, trials, best)
