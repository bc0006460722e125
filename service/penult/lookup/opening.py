"""From one line of configuration to a store."""

from pathlib import Path

from penult.extras import how_to_install
from penult.lookup.errors import StoreUnavailable
from penult.lookup.types import Store

OFF = "off"
# The file by which a folder of collections is known; its engine is imported only when it is used.
RECORD = "items.db"
_SCHEMES = {"postgresql": "pgvector", "postgres": "pgvector", "milvus": "milvus"}


def is_shared(where: str) -> bool:
    """Return True if several processes may open this store."""
    return where.partition("://")[0] in _SCHEMES


def has_collections(folder: Path) -> bool:
    """Return whether the embedded engine keeps collections in this folder already. Imports no engine."""
    return (folder / RECORD).exists()


def open_store(where: str) -> Store:
    """Open a folder, postgresql://USER@HOST/DATABASE or milvus://HOST:PORT; raise StoreUnavailable.

    An engine's library is imported here and nowhere else.
    """
    scheme, has_scheme, _ = where.partition("://")
    engine = _SCHEMES.get(scheme, "embedded") if has_scheme else "embedded"
    if has_scheme and scheme not in _SCHEMES:
        known = ", ".join(f"{known}://" for known in _SCHEMES)
        raise StoreUnavailable("STORE_UNKNOWN", f"--lookup {scheme}://: name a folder, or begin with {known}")
    try:
        if engine == "pgvector":
            from penult.lookup.pgvector import PgvectorStore

            return PgvectorStore(where)
        if engine == "milvus":
            from penult.lookup.milvus import MilvusStore

            return MilvusStore(where)
        from penult.lookup.embedded import EmbeddedStore

        return EmbeddedStore(Path(where))
    except ModuleNotFoundError as error:
        extra = "serve,cpu" if engine == "embedded" else engine
        raise StoreUnavailable("STORE_ENGINE", f"--lookup needs {error.name}: {how_to_install(extra)}") from error
