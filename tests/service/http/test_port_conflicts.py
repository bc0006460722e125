"""What an error about a port says is found out from whatever holds it, and from the address itself."""

import errno

import pytest

from penult.service.http.port_conflicts import address, port_refused, reachable


@pytest.mark.parametrize(
    ("host", "url_host"),
    [
        ("127.0.0.1", "127.0.0.1:9"), ("0.0.0.0", "127.0.0.1:9"), ("::", "[::1]:9"), ("::1", "[::1]:9"), ("example.org", "example.org:9"),
    ],
)  # fmt: skip
def test_a_server_on_all_addresses_is_reached_on_this_machine(host: str, url_host: str):
    """The page's URL can be opened here, also where the server listens on every address."""
    assert address(reachable(host), 9) == url_host


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EACCES, "Permission denied"), "only root may listen below 1024; choose another port with --port"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine has no address 192.0.2.1; give one of its own with --host"),
        (OSError(-2, "Name or service not known"), "no address is known for 192.0.2.1; give one of this machine's with --host"),
        (OSError(errno.ENOBUFS, "No buffer space available"), "No buffer space available; choose another port"),
    ],
)  # fmt: skip
def test_why_a_port_cannot_be_had_is_told_apart(error: OSError, words: str):
    """Rights, foreign addresses and unknown names are no ports in use, and each has its own advice."""
    refused = port_refused("192.0.2.1", 80, "--port", error)
    assert (refused.reason, words in refused.message, "\n" in refused.message) == ("PORT", True, False)
