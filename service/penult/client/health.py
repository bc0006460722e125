"""Is the server ready? `python -m penult.client.health` ends with 0 if it is; else with 1, and one line says why.

Made for a container's HEALTHCHECK: it asks the server beside it, found as that one was told to listen (PENULT_HOST,
PENULT_PORT), by gRPC's own health protocol. Four bytes go either way, which needs no stubs: the base install is enough.
Where that server has TLS (PENULT_TLS_CERT), it must show the certificate that lies there, whatever name is on it.
"""

import argparse
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from penult.client.channel import channel_with
from penult.client.credentials import NONE, Security, read_file

_CHECK = "/grpc.health.v1.Health/Check"
_STATUSES = {b"": "UNKNOWN", b"\x08\x00": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}
_PORT = "50051"
_TIMEOUT_S = 3.0
_HERE = "127.0.0.1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once; return 0 if SERVING, else 1."""
    parser = argparse.ArgumentParser(prog="python -m penult.client.health", description="Is the server ready?")
    parser.add_argument("--target", metavar="HOST:PORT", help="the server (default: of PENULT_HOST and PENULT_PORT)")
    parser.add_argument("--service", default="", help="the health name to ask for; live: liveness (default: readiness)")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, help="seconds to wait (%(default)s)")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core would add its own lines to ours
    target = chosen.target or own_target(os.environ)
    answer = status(target, chosen.service, chosen.timeout, own_security(os.environ))
    if answer != "SERVING":
        print(f"{target}: {answer}", file=sys.stderr)
    return int(answer != "SERVING")


def own_target(environment: Mapping[str, str]) -> str:
    """Return where `penult serve` listens under these variables."""
    host = _here(environment.get("PENULT_HOST") or _HERE)
    port = environment.get("PENULT_PORT", _PORT)
    if port.startswith("tcp://"):  # Kubernetes' variable for a Service named penult; the server ignores it too
        port = _PORT
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _here(host: str) -> str:
    """Return where a server is asked that listens on a host: one that listens on all addresses, on this machine's."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return {4: _HERE, 6: "::1"}[address.version] if address.is_unspecified else host


def own_security(environment: Mapping[str, str]) -> Security:
    """Return how to speak to `penult serve` under these variables: as PENULT_CA etc. say, or by its own certificate."""
    told = Security.from_environment(environment)
    own = environment.get("PENULT_TLS_CERT", "")
    if told.is_tls or not own:
        return told
    shown, key = None, None
    if environment.get("PENULT_TLS_CLIENT_CA"):
        shown, key = Path(own), Path(environment.get("PENULT_TLS_KEY", ""))
    return Security(ca=Path(own), certificate=shown, key=key, server_name=told.server_name or _name_on(Path(own)))


def _name_on(path: Path) -> str:
    """Return the first name on a certificate, for it need not be this machine's loopback address; "" for none."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificates(read_file(path))[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return next(
        iter([*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]), ""
    )


def status(target: str, service: str = "", timeout_s: float = _TIMEOUT_S, security: Security = NONE) -> str:
    """Return SERVING, NOT_SERVING or UNKNOWN as the server says, or gRPC's code where it does not answer."""
    with channel_with(target, (), security) as channel:
        check = channel.unary_unary(_CHECK, request_serializer=bytes, response_deserializer=bytes)
        try:
            return _STATUSES.get(check(_request(service), timeout=timeout_s), "UNKNOWN")
        except grpc.RpcError as error:
            return str(error.code().name)


def _request(service: str) -> bytes:
    """Return a HealthCheckRequest, whose only field is the name."""
    name = service.encode()
    if len(name) > 127:  # its length would need more than one byte; none of ours comes near
        raise ValueError(f"a health name of {len(name)} bytes; at most 127")
    return b"\x0a" + bytes([len(name)]) + name if name else b""


if __name__ == "__main__":
    sys.exit(main())
