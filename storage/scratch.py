"""A DuckDB to compute in: nothing in it stays. What does not fit into its memory goes to a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import duckdb

from prebake.errors import StorageError
from prebake.settings import Settings


@contextmanager
def open_scratch(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty in-memory DuckDB in UTC with the memory and threads of ``[mine]``.

    Raises StorageError, in the body too, where DuckDB runs out of memory or disk or cannot read a file.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{settings.mine.memory_gb}GB",
        "preserve_insertion_order": False,
    }
    if settings.mine.threads:
        config["threads"] = settings.mine.threads
    with TemporaryDirectory(prefix="prebake-scratch-") as folder:
        try:
            with duckdb.connect(config=config | {"temp_directory": folder}) as connection:
                connection.execute("set TimeZone = 'UTC'")
                yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            reason = str(error).split("\n", 1)[0]
            raise StorageError(
                f"{folder}: DuckDB could not go on: {reason}; raise mine.memory_gb, free space or set TMPDIR"
            ) from error
