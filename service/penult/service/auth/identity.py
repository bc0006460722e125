"""Who asks: the name of a token, else the address that a request comes from. Not the caller's word: shares go by it."""

from contextvars import ContextVar

_caller: ContextVar[str] = ContextVar("caller", default="")


def caller() -> str:
    """Return who asks, "" where nobody knows."""
    return _caller.get()


def set_caller(name: str) -> None:
    """Remember who asks, for the rest of this request."""
    _caller.set(name)


def host_of(peer: str) -> str:
    """Return the address of a peer as gRPC names it, ipv4:192.0.2.1:5000, without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
