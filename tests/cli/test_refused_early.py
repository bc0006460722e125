"""What cannot be right is refused before any server is asked, in one line, by every verb of the client."""

import socket

import pytest

from penult import cli


@pytest.fixture
def nobody():
    """An address where somebody listens, and what has connected there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield f"127.0.0.1:{listening.getsockname()[1]}", listening


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("classify empty", "holds no JPEG, PNG, WebP"),
        ("classify x.png -c c -k 0", "not between 1 and"),
        ("classify x.png -k 3", "--collection C"),
        ("classify x.png --scorer neighbours", "--collection C"),
        ("classify x.png --top 0", "not between 1 and"),
        ("classify x.png --version 0", "not between 1 and"),
        ("classify x.png --timeout 0", "above 0"),
        ("classify x.png --timeout nan", "above 0"),
        ("classify x.png --target http://127.0.0.1:1/v2", "gRPC has no paths"),
        ("classify x.png --target https://127.0.0.1:1,127.0.0.1:2", "for all of them or for none"),
        ("classify x.png --target a,b", "not HOST:PORT"),
        ("describe empty", "holds no JPEG, PNG, WebP"),
        ("describe empty --out x.parquet", "no JPEG, PNG, WebP"),
        ("describe absent --out x.parquet", "is not a folder of photos"),
        ("describe . --out x.csv", "ends in .parquet or .pq"),
        ("describe . --out empty", "is a folder"),
        ("describe --list absent --out x.parquet", "there is no absent"),
        ("describe --from absent.parquet --out x.parquet", "there is no absent.parquet"),
        ("lookup empty -c c", "holds no JPEG, PNG, WebP"),
        ("lookup x.png -c c -k 0", "not between 1 and"),
        ("lookup x.png -c c --max-distance 0", "above 0"),
        ("lookup x.png -c c --max-distance 2.1", "at most 2"),
        ("lookup x.png -c c --filter label", "write FIELD=VALUE"),
        ("lookup x.png -c c --sheet x.txt", "ends in .png"),
        ("lookup x.png -c c --sheet nowhere/x.png", "there is no folder nowhere"),
        ("lookup x.png -c c --photos nowhere --sheet x.png", "there is no folder nowhere"),
        ("lookup x.png -c c --photos .", "--sheet OUT.png"),
        ("index add c empty", "holds no JPEG, PNG, WebP"),
        ("index add c absent", "cannot be read"),
        ("index export c x.csv", "ends in .parquet or .pq"),
        ("index duplicates c --max-distance 0", "above 0"),
        ("index reindex c --model m --version 0", "not between 1 and"),
        ("index reindex c --model m --photos nowhere", "there is no folder nowhere"),
        ("index drop c", "add --yes"),
        ("index drop c --json", "add --yes"),
        ("bench --photos empty", "no JPEG, PNG, WebP"),
        ("bench --version 0 --raw", "not between 1 and"),
        ("bench --tune --config x.json", "ends in .toml"),
        ("bench --tune --config nowhere/x.toml", "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anybody_is_asked(argv, told, nobody, tmp_path, monkeypatch, capsys):
    """Exit code 1 or 2, nothing on standard output, one line, and nobody has connected."""
    target, listening = nobody
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(b"photo")
    (tmp_path / "empty").mkdir()
    words = argv.split()
    words += [] if "--target" in words or "--tune" in words else ["--target", target]
    try:
        code = cli.main(words)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1), err
    assert told in err
    with pytest.raises(BlockingIOError):
        listening.accept()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "x.png"]
