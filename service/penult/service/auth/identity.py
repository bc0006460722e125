"""Caller identity for fair queueing: the name of the token, else the peer's address. Never a value that clients set."""

from contextvars import ContextVar

_caller: ContextVar[str] = ContextVar("caller", default="")


def caller() -> str:
    """Return the caller of the current request, "" outside of requests."""
    return _caller.get()


def set_caller(name: str) -> None:
    """Set the caller for the rest of this request."""
    _caller.set(name)


def host_of(peer: str) -> str:
    """Return the address of a peer as gRPC names it, ipv4:192.0.2.1:5000, without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
