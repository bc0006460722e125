"""Decide whether a connection goes through a proxy, for every client in penult.

Without this, gRPC sends calls to 127.0.0.1 to the proxy of `http_proxy`, and Python's urllib reads other variables than
gRPC. Connections within this machine never go through a proxy.
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

# As gRPC's core reads them, in this order; it knows no others, and none in capitals.
_GRPC_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_GRPC_EXCEPTIONS, _EXCEPTIONS = "no_grpc_proxy", ("no_proxy", "NO_PROXY")
# The second undoes GRPC_ADDRESS_HTTP_PROXY.
DIRECT: Sequence[tuple[str, int | str]] = (
    ("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""),
)  # fmt: skip


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address, 127.0.0.0/8 or ::1, or localhost."""
    try:
        return bool(_address(host).is_loopback)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def is_here(host: str) -> bool:
    """Return whether a client that connects to a host stays on this machine: loopback, or the unspecified address."""
    try:
        return is_loopback(host) or bool(_address(host).is_unspecified)
    except ValueError:
        return False


def _address(host: str) -> Any:
    """Return a host as an IP address, the IPv4 address inside ::ffff:…; raise ValueError for a name."""
    address = ipaddress.ip_address(host.strip("[]"))
    return getattr(address, "ipv4_mapped", None) or address


def proxy_for(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the proxy, "http://…", through which an http or https URL is fetched, "" for none."""
    parts = urlsplit(url)
    return _proxy((f"{parts.scheme}_proxy",), _EXCEPTIONS, parts.hostname or "", str(parts.port or ""), environment)


def grpc_proxy_for(host: str, port: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the proxy, "http://…", through which gRPC reaches a server, "" for none."""
    exceptions = (_GRPC_EXCEPTIONS,) if environment.get(_GRPC_EXCEPTIONS) is not None else _EXCEPTIONS
    return _proxy(_GRPC_PROXIES, exceptions, host, port, environment)


def channel_options(host: str, port: str, environment: Mapping[str, str] = os.environ) -> list[tuple[str, int | str]]:
    """Return the options of a gRPC channel to one server, for the way to it."""
    proxy = grpc_proxy_for(host, port, environment)
    return [("grpc.http_proxy", proxy)] if proxy else list(DIRECT)


def host_and_port(text: str) -> tuple[str, str]:
    """Return both, the host without brackets, the port "" if there is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.startswith("[")):
        return text.strip("[]"), ""
    return host.strip("[]"), port


def _proxy(
    names: Sequence[str], exceptions: Sequence[str], host: str, port: str, environment: Mapping[str, str]
) -> str:
    """Return the proxy that the first of these variables names for a host, "" where the way is direct."""
    value = next((found for name in names if (found := environment.get(name, "").strip())), "")
    if not value or not host or is_here(host):
        return ""
    excepted = next((environment[name] for name in exceptions if name in environment), "")
    if any(_is_meant(host, port, entry.strip()) for entry in excepted.split(",") if entry.strip()):
        return ""
    url = value if "://" in value else f"http://{value}"
    return url if url.lower().startswith("http://") else ""  # gRPC and urllib speak to no other kind


def _is_meant(host: str, port: str, entry: str) -> bool:
    """Return whether an entry of no_proxy means a host: a name with all below it, an address, a network, or "*"."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, its_port = host_and_port(entry)
    name = name.lower().removeprefix("*").removeprefix(".")
    host = host.lower().removesuffix(".")
    return its_port in ("", port) and (host == name or host.endswith(f".{name}"))
