"""Settings come from flags, PENULT_* variables, a TOML file and defaults, in that order, and are checked once."""

import argparse
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from penult.bundle.guards import DEFAULT_LIMITS, ImageLimits
from penult.service.config import ServeConfig
from penult.service.errors import ConfigError
from penult.service.runtime.cuda_options import GpuOptions
from penult.settings import option_of


@pytest.fixture
def configure(tmp_path):
    """Resolve settings as `penult serve` does: configure("--port", "1", env={…}, toml="…")."""

    def resolve(*argv: str, env: dict[str, str] | None = None, toml: str | bytes | None = None) -> ServeConfig:
        if toml is not None:
            file = tmp_path / "penult.toml"
            file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
            argv = ("--config", str(file), *argv)
        parser = argparse.ArgumentParser()
        ServeConfig.add_arguments(parser)
        return ServeConfig.load(parser.parse_args(argv), env or {})

    return resolve


def test_flags_beat_variables_beat_the_file_beat_defaults(configure):
    """Each source wins over all that are further away from the command line, setting by setting."""
    toml = "port = 1\nmetrics_port = 1\ngrace = 1\ndrain_lead = 0.5"
    config = configure("--port", "3", env={"PENULT_PORT": "2", "PENULT_METRICS_PORT": "2"}, toml=toml)
    assert (config.port, config.metrics_port, config.grace, config.drain_lead) == (3, 2, 1.0, 0.5)
    assert config.queue_max_images == ServeConfig().queue_max_images


def test_every_setting_has_a_flag_a_variable_and_a_key(configure):
    """Whatever can be set can be set in all three ways, with the type of its default."""
    company = {"tls_cert": ["TLS_KEY"], "tls_key": ["TLS_CERT"], "tls_client_ca": ["TLS_CERT", "TLS_KEY"],
               "feedback_photos_mb": ["FEEDBACK"]}  # fmt: skip
    for f in fields(ServeConfig):
        choices = option_of(f).choices
        env = {f"PENULT_{name}": "file" for name in company.get(f.name, ())}
        if isinstance(f.default, bool):
            value, expected, flags = "true", True, ()
        else:
            some = {
                "host": "::1",
                "models": "m",
                "pin": "pets=3",
                "shadow": "pets=3",
                "shadow_share": "0.5",
                "image_formats": "gif",
                "access_log": "0.5",
                "trace_share": "0.5",
                "keep_unsure_below": "0.5",
            }
            value = choices[-1] if choices else some.get(f.name, "7")
            expected, flags = type(f.default)(value), (value,)
        quoted = value if isinstance(f.default, (int, float)) else f'"{value}"'
        assert getattr(configure("--" + f.name.replace("_", "-"), *flags, env=env), f.name) == expected
        assert getattr(configure(env=env | {f"PENULT_{f.name.upper()}": value}), f.name) == expected
        assert getattr(configure(toml=f"{f.name} = {quoted}", env=env), f.name) == expected


def test_without_any_source_the_defaults_of_the_design_hold(configure):
    """Out of the box: loopback, ports 50051 and 9095, 5 s of drain lead, the limits that DESIGN.md names."""
    config = configure()
    assert (config.models, config.host, config.port, config.metrics_port) == (Path("models"), "127.0.0.1", 50051, 9095)
    assert (config.device, config.drain_lead) == ("auto", 5.0)
    assert (config.image_max_bytes, config.image_max_pixels) == (63 << 20, 200_000_000)
    assert (config.image_max_side, config.image_max_scans, config.message_max_bytes) == (65_500, 64, 64 << 20)
    assert config.image_limits == DEFAULT_LIMITS


def test_what_guards_the_ports_must_fit_together(configure):
    """A certificate without its key, an authority of clients without a certificate, are refused in one line."""
    for flags in (["--tls-cert", "c"], ["--tls-key", "k"], ["--tls-client-ca", "a"]):
        with pytest.raises(ConfigError, match="--tls-cert"):
            configure(*flags)
    mutual = ["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"]
    with pytest.raises(ConfigError, match="--tokens"):
        configure(*mutual, "--http")
    assert configure(*mutual, "--http", "--tokens", "t").http
    assert not configure(*mutual).has_try_photos
    assert not configure("--tokens", "t").has_try_photos
    assert configure("--tokens", "t", "--try-photos", "on").has_try_photos


def test_what_a_gpu_may_take_is_passed_on(configure):
    """The batch limit, the memory limit and the mode reach the device; a limit left open is 32 images a run there."""
    assert configure().gpu_options == GpuOptions(32, 0, "auto")
    chosen = configure("--batch-max-images", "12", "--gpu-memory-mb", "900", "--gpu-mode", "nhwc")
    assert chosen.gpu_options == GpuOptions(12, 900, "nhwc")
    with pytest.raises(ConfigError, match="--gpu-memory-mb -1 must be at least 0"):
        configure("--gpu-memory-mb", "-1")


@pytest.mark.parametrize(
    "toml",
    [
        "prot = 1",
        "PORT = 1",
        "[server]\nport = 1",
        'port = "many"',
        "port = [1]",
        "port = true",
        "port = 1.5",
        "host = 5",
        "models = 5",
        'drain_lead = "soon"',
        "drain_lead = nan",
        "grace = inf",
        "port = 65536",
        "port = -1",
        'device = "tpu"',
        "device = 1",
        "grace = -1",
        "queue_max_images = 0",
        "image_max_bytes = 0",
        "batch_max_images = -1",
        "port = ",
        b"host = '\xff'",
    ],
)
def test_a_wrong_file_is_one_clear_line(configure, toml):
    """An unknown key, a wrong type, an impossible value or broken TOML gives ConfigError, in one line."""
    with pytest.raises(ConfigError) as caught:
        configure(toml=toml)
    assert caught.value.reason == "CONFIG"
    assert caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_key_is_named_with_its_file(configure):
    """A misspelt setting is refused by name: taken silently, it would leave a default in force."""
    with pytest.raises(ConfigError, match=r"penult\.toml: unknown setting 'prot'; did you mean port\?"):
        configure(toml="prot = 1")


def test_a_missing_file_is_named(configure, tmp_path):
    """A --config that is not there is an error, not an empty configuration."""
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        configure("--config", str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    "env",
    [{"PENULT_PORT": "many"}, {"PENULT_DEVICE": "tpu"}, {"PENULT_GRACE": ""}, {"PENULT_GRACE": "nan"},
     {"PENULT_GRACE": "inf"}, {"PENULT_PORT": "1.5"}],
    ids=str,
)  # fmt: skip
def test_a_wrong_variable_is_refused(configure, env):
    """A PENULT_* variable is checked as strictly as a flag."""
    with pytest.raises(ConfigError, match=r"--(port|device|grace)"):
        configure(env=env)


def test_variables_that_kubernetes_sets_are_no_settings(configure):
    """PENULT_PORT=tcp://…, which every pod beside a Service called penult has, leaves the port alone."""
    assert configure(env={"PENULT_PORT": "tcp://10.0.0.1:50051"}).port == ServeConfig().port


@pytest.mark.parametrize("argv", [["--port", "many"], ["--device", "tpu"], ["--prot", "1"]])
def test_a_wrong_flag_is_a_usage_error(configure, argv, capsys):
    """A command line that cannot be read ends with exit code 2, naming the flag."""
    with pytest.raises(SystemExit) as caught:
        configure(*argv)
    assert caught.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_help_shows_every_default():
    """--help tells, for every setting, what it is when left alone."""
    parser = argparse.ArgumentParser()
    ServeConfig.add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for f in fields(ServeConfig):
        assert "--" + f.name.replace("_", "-") in text
        shown = {True: "on", False: "off"}.get(f.default, f.default) if isinstance(f.default, bool) else f.default
        assert shown == "" or f"({shown})" in text


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_reflection_is_automatic_on_loopback_only(configure, host, is_loopback):
    """Who listens to the world does not describe the API unasked; on and off decide by themselves."""
    assert configure("--host", host).has_reflection is is_loopback
    assert configure("--host", host, "--reflection", "on").has_reflection is True
    assert configure("--host", host, "--reflection", "off").has_reflection is False


def test_the_image_limits_are_the_settings(configure):
    """Each image setting reaches the decoder's limit of the same meaning."""
    limits = configure(
        "--image-max-bytes=1", "--image-max-pixels=2", "--image-max-side=3", "--image-max-scans=4",
        "--image-max-decoded-pixels=5", "--image-formats=AVIF, png",
    ).image_limits  # fmt: skip
    sizes = {"max_bytes": 1, "max_pixels": 2, "max_side": 3, "max_scans": 4, "max_decoded_pixels": 5}
    assert limits == ImageLimits(**sizes, formats=("PNG", "AVIF"))
    assert configure().image_limits.formats == ("JPEG", "PNG", "WEBP")


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        ("jpge", "jpge is not one of jpeg, png, webp, avif, tiff, bmp, gif, heic; did you mean jpeg?"),
        ("", "no format"),
    ],
)
def test_image_formats_that_nobody_reads_are_refused(configure, formats: str, said: str):
    """A format of another name, or none at all, is one line before the server starts."""
    with pytest.raises(ConfigError) as caught:
        configure(f"--image-formats={formats}")
    assert said in str(caught.value)


def test_heic_without_its_library_is_refused_at_start(configure, monkeypatch: pytest.MonkeyPatch):
    """The line names the extra."""
    monkeypatch.setattr("penult.service.config.can_read_heic", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install '\.\[heic\]'"):
        configure("--image-formats=jpeg,heic")


def test_threads_default_to_the_cores_at_hand(configure):
    """0 threads means one per core that the process may use, and a number means that number."""
    assert configure("--threads", "3").cpu_threads == 3
    assert configure().cpu_threads >= 1


def test_settings_cannot_change_while_serving(configure):
    """Resolved settings are frozen, so what the log says at start stays true."""
    with pytest.raises(FrozenInstanceError):
        configure().port = 1


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_workers_share_what_is_bounded(configure, workers):
    """The queues of the workers add up to the one set, the pixels stay below theirs, threads are cores divided."""
    whole = configure("--workers", str(workers), "--queue-max-images", "100", "--port", "0")
    parts = [whole.of_worker(number, 5, 6) for number in range(1, workers + 1)]
    assert sum(part.queue_max_images for part in parts) == 100
    assert max(part.queue_max_images for part in parts) - min(part.queue_max_images for part in parts) <= 1
    assert sum(part.decode_max_pixels for part in parts) <= whole.decode_max_pixels
    assert sum(part.queue_max_bytes for part in parts) <= whole.queue_max_bytes
    assert {part.threads for part in parts} == {max(1, configure().cpu_threads // workers)}
    assert {(part.port, part.metrics_port, part.workers) for part in parts} == {(5, 6, 1)}
    assert configure("--workers", "2", "--threads", "3").of_worker(1, 5, 6).threads == 3


def test_settings_travel_as_flags(configure):
    """The command line made of settings gives the same settings, whatever variables say."""
    config = configure("--models", "a b", "--grace", "0.25", "--host", "::1", "--image-max-bytes", "123", "--port", "0")
    assert configure(*config.as_flags(), env={"PENULT_PORT": "7", "PENULT_GRACE": "9"}) == config


@pytest.mark.parametrize("argv", [("--workers", "0"), ("--workers", "3", "--queue-max-images", "2")])
def test_workers_that_cannot_work_are_refused(configure, argv):
    """No worker at all, or workers without a place in the queue, are one line that names the flag."""
    with pytest.raises(ConfigError, match="--workers"):
        configure(*argv)


def test_fronts_is_another_name_of_workers(configure):
    """The option's name of before works as flag, variable and key, unseen in --help; the new name wins beside it."""
    assert configure("--fronts", "3").workers == 3
    assert configure(env={"PENULT_FRONTS": "3"}).workers == 3
    assert configure(toml="fronts = 3").workers == 3
    assert configure(env={"PENULT_FRONTS": "3", "PENULT_WORKERS": "2"}).workers == 2
    assert configure(env={"PENULT_FRONTS": "3"}, toml="workers = 2").workers == 3
    parser = argparse.ArgumentParser()
    ServeConfig.add_arguments(parser)
    assert "front" not in parser.format_help()


def test_help_is_short():
    """Each option is said in at most 12 words, without a stop."""
    for f in fields(ServeConfig):
        assert len(option_of(f).help.split()) <= 12, option_of(f).help
        assert not option_of(f).help.endswith(".")


@pytest.mark.parametrize("name", ["access_log", "trace_share"])
@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_shares_are_shares(configure, name, value):
    """A share below 0, above 1 or none at all is refused with its flag's name."""
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        configure(env={f"PENULT_{name.upper()}": value})


@pytest.mark.parametrize(
    ("models", "lookup", "place"),
    [
        ("models", "auto", "lookup"), ("/srv/penult/models", "auto", "/srv/penult/lookup"), ("here/pets", "auto", "here/lookup"),
        ("models", "off", "off"), ("models", "postgresql://x/y", "postgresql://x/y"), ("models", "/data", "/data"),
    ],
)  # fmt: skip
def test_collections_lie_beside_the_models(configure, tmp_path, monkeypatch, models, lookup, place):
    """Without a word on it, collections are kept beside the repository, not in the folder of whoever starts a server."""
    monkeypatch.chdir(tmp_path)
    config = configure("--models", models, "--lookup", lookup)
    assert config.lookup_place == place
    assert config.old_lookup is None


def test_collections_of_before_are_still_found(configure, tmp_path, monkeypatch):
    """A folder ./lookup that holds collections is used as long as there is none beside the models."""
    monkeypatch.chdir(tmp_path)
    for folder in ("lookup", "srv/lookup"):
        (tmp_path / folder).mkdir(parents=True)
    config = configure("--models", "srv/models")
    assert (config.lookup_place, config.old_lookup) == ("srv/lookup", None)  # an empty folder holds none
    (tmp_path / "lookup" / "items.db").touch()
    assert (config.lookup_place, config.old_lookup) == ("lookup", Path("lookup"))
    assert configure("--models", "srv/models", "--lookup", "srv/lookup").old_lookup is None
    (tmp_path / "srv" / "lookup" / "items.db").touch()
    assert (config.lookup_place, config.old_lookup) == ("srv/lookup", None)
    monkeypatch.chdir(tmp_path / "srv")
    assert configure("--models", ".").lookup_place == str(tmp_path / "lookup")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shadow", "pets"], "--shadow 'pets' is not NAME=VERSION, as in pets=3"),
        (["--shadow", "pets=3,pets=4"], "--shadow names two versions of pets"),
        (["--shadow", "pets=4", "--pin", "pets=3,pets=4"], "--shadow pets=4 is pinned too"),
        (["--shadow", "pets=4", "--workers", "2"], "use it with --workers 1"),
    ],
)
def test_a_shadow_must_be_one_other_version(configure, flags, message):
    """A shadow that is no version, that clients get, or that several workers would compare, is refused in one line."""
    with pytest.raises(ConfigError, match=message):
        configure(*flags)
    assert configure("--shadow", "pets=4, dogs=1").shadows == {"pets": 4, "dogs": 1}
