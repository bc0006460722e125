"""Parse targets in the forms that users write, and choose the proxy to them."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from penult.proxies import DIRECT, channel_options, grpc_proxy_for, host_and_port, is_here

_SOCKET_FILES = ("unix:", "unix-abstract:")
_URL = re.compile(r"(https?|grpcs?)://", re.IGNORECASE)
_RESOLVER = re.compile(r"dns:(//[^/]*/)?|ipv4:|ipv6:", re.IGNORECASE)
_OTHER_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


class TargetError(ValueError):
    """An invalid address; `message` is one line that says what to write."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Target:
    """One address.

    Attributes:
        name: The address as gRPC reads it.
        host: Its host; "" for a socket file or another resolver.
        port: Its port; "" if not given.
        is_tls: Whether the URL asks for TLS.
    """

    name: str
    host: str
    port: str
    is_tls: bool = False

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine: a loopback address, or a socket file."""
        return self.name.startswith(_SOCKET_FILES) or is_here(self.host)


def read_targets(target: str | Sequence[str]) -> list[Target]:
    """Return the addresses that "a:1,b:2", a URL or a sequence names, one or more; raise TargetError."""
    texts = target.split(",") if isinstance(target, str) else list(target)
    found = [_read(text.strip()) for text in texts if text.strip()]
    if not found:
        raise TargetError("no address: give HOST:PORT, or several separated by commas")
    if len({each.is_tls for each in found}) > 1:
        raise TargetError(f"{', '.join(texts)}: use TLS for all of them or for none")
    return found


def proxy_options(
    targets: Sequence[Target], addresses: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> list[tuple[str, int | str]]:
    """Return the channel options that send calls to these targets directly or through a proxy; raise TargetError.

    `addresses`: the IP addresses of the targets, in their order, if there are several.
    """
    if not targets[0].host and not targets[0].is_here:
        return []  # another resolver's name, such as xds:///…, which gRPC resolves
    if len(targets) == 1:
        return channel_options(targets[0].host, targets[0].port, environment)
    proxies = [grpc_proxy_for(each.host, each.port, environment) for each in targets]
    proxy = next(filter(None, proxies), "")
    if not proxy:
        return list(DIRECT)
    # gRPC would send "a:1,b:2" to the proxy as one host, but sends a list of addresses one by one.
    through = ",".join(address for address, each in zip(addresses, proxies, strict=True) if each)
    return [
        ("grpc.enable_http_proxy", 0),
        ("grpc.address_http_proxy", _proxy_address(urlsplit(proxy))),
        ("grpc.address_http_proxy_enabled_addresses", through),
    ]


def _read(text: str) -> Target:
    if text.startswith((*_SOCKET_FILES, "vsock:")):
        return Target(text, "", "")
    if url := _URL.match(text):
        host, port = host_and_port(text[url.end() :].removesuffix("/"))
        if not host or not port or "/" in text[url.end() :].removesuffix("/"):
            raise TargetError(f"{text} is not HOST:PORT; gRPC has no paths: write, for example, 127.0.0.1:50051")
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Target(name, host, port, url[1].lower() in ("https", "grpcs"))
    if scheme := _RESOLVER.match(text):
        return Target(text, *host_and_port(text[scheme.end() :]))
    return Target(text, "", "") if _OTHER_SCHEME.match(text) else Target(text, *host_and_port(text))


def _proxy_address(proxy: SplitResult) -> str:
    """Return a proxy as IP:PORT; raise TargetError."""
    if proxy.username:
        raise TargetError("a proxy with a password can be used for one address only; name a single --target")
    try:
        found = socket.getaddrinfo(proxy.hostname, proxy.port or 80, type=socket.SOCK_STREAM)
    except OSError as error:
        why = error.strerror
        raise TargetError(f"the proxy of {proxy.geturl()!r} is not known here ({why}); check http_proxy") from error
    address, port = str(found[0][4][0]), int(found[0][4][1])
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
