"""Detect the metrics of a penult server at an address, for messages about a wrong or used port."""

import http.client
import time

_OURS = b"penult_"
_MAX_BYTES, _PIECE_BYTES = 1 << 20, 1 << 16


def serves_metrics(host: str, port: int, timeout_s: float) -> bool:
    """Return whether GET /metrics names penult's metrics.

    The other end may be any program. At most 1 MiB of its answer is read, within about `timeout_s` seconds, without a
    proxy.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    end, body = time.monotonic() + timeout_s, b""
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        while len(body) < _MAX_BYTES and time.monotonic() < end and (piece := answer.read1(_PIECE_BYTES)):
            body += piece
            if _OURS in body[-_PIECE_BYTES - len(_OURS) :]:
                return True
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return False
