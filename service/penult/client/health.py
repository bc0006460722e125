"""Check a server's readiness: `python -m penult.client.health` ends with 0 if it is ready, else with 1 and the reason.

It is the HEALTHCHECK of the container images. It calls the server of the same container, at PENULT_HOST and
PENULT_PORT, by gRPC's health protocol. The messages have at most four bytes, so that the base install suffices. If the
server has TLS (PENULT_TLS_CERT), its certificate must be that file, whatever name is on it.
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
    """Check once; return 0 if SERVING, else 1."""
    parser = argparse.ArgumentParser(prog="python -m penult.client.health", description="Check if a server is ready.")
    parser.add_argument("--target", metavar="HOST:PORT", help="server address (from PENULT_HOST and PENULT_PORT)")
    parser.add_argument("--service", default="", help="health service name; live: liveness (readiness)")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, help="seconds to wait (%(default)s)")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # keep gRPC's core from logging
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
    """Return the address to call for a host to listen on; for all addresses, loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return {4: _HERE, 6: "::1"}[address.version] if address.is_unspecified else host


def own_security(environment: Mapping[str, str]) -> Security:
    """Return the security of calls under these variables: as PENULT_CA etc. say, or by the server's certificate."""
    chosen = Security.from_environment(environment)
    own = environment.get("PENULT_TLS_CERT", "")
    if chosen.is_tls or not own:
        return chosen
    shown, key = None, None
    if environment.get("PENULT_TLS_CLIENT_CA"):
        shown, key = Path(own), Path(environment.get("PENULT_TLS_KEY", ""))
    return Security(ca=Path(own), certificate=shown, key=key, server_name=chosen.server_name or _name_on(Path(own)))


def _name_on(path: Path) -> str:
    """Return the first name on a certificate, for it need not be this machine's loopback address; "" for none."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificates(read_file(path))[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return next(
        iter([*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]), ""
    )


def status(target: str, service: str = "", timeout_s: float = _TIMEOUT_S, security: Security = NONE) -> str:
    """Return SERVING, NOT_SERVING or UNKNOWN as the server reports, or gRPC's code if it does not answer."""
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
