# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL and a Redis of a test's own, with ports and folders of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
import redis
from services import PATIENCE, free_port, wait_for

#: PostgreSQL refuses to run as root, so one of these runs it then.
UNPRIVILEGED = ("postgres", "nobody")

_WITHOUT_LOSSES_IN_A_CRASH = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


def program(name):
    """Return the path of a program of PostgreSQL or Redis; ``None`` where it is not installed."""
    # Debian puts no server of PostgreSQL on the path, because it may have several versions.
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, newest_first)))


def what_lacks():
    """Say which servers are not installed, and how to install them; ``None`` where both are."""
    packages = {"redis-server": "redis-server", "initdb": "postgresql", "postgres": "postgresql"}
    lacking = sorted({package for name, package in packages.items() if program(name) is None})
    if not lacking:
        return None
    names = " ".join(lacking)
    return f"not installed: {' and '.join(lacking)}; on Debian and Ubuntu: sudo apt-get install {names}"


class Redis:
    """
    A Redis, which a test may stop and start again.

    :param folder: Where it keeps what is in it.
    """

    def __init__(self, folder):
        self._folder = folder
        self._port = free_port()
        self._process = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.stop()

    def start(self):
        self._folder.mkdir(exist_ok=True)
        # With a rule when to save, it saves when it is stopped, too.
        options = {"bind": "127.0.0.1", "port": str(self._port), "dir": str(self._folder), "save": "3600 1"}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([program("redis-server"), *arguments], stdout=log, stderr=log)
        wait_for("Redis", self._answers)

    def stop(self):
        """End it the way an administrator does."""
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)

    def _answers(self):
        with contextlib.suppress(redis.exceptions.ConnectionError):
            return redis.Redis.from_url(self.url).ping()
        return False


@contextlib.contextmanager
def postgres():
    """Run a PostgreSQL; yields its port. The user ``airflow`` and the database ``postgres`` need no password."""
    account = _account()
    # Not in pytest's folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="voicegenie-postgres-") as folder:
        if account:
            os.chown(folder, account["user"], account["group"])
        data, port = Path(folder) / "data", free_port()
        as_account = {"cwd": folder, **account}
        initdb = [program("initdb"), "--pgdata", data, "--username", "airflow", "--auth", "trust", "--no-sync"]
        subprocess.run([*initdb, "--encoding", "UTF8"], check=True, stdout=subprocess.DEVNULL, **as_account)
        options = ("-h", "127.0.0.1", "-p", str(port), "-k", "", "-N", "200", *_WITHOUT_LOSSES_IN_A_CRASH)
        with (Path(folder) / "postgres.log").open("ab") as log:
            server = subprocess.Popen(
                [program("postgres"), "-D", data, *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_account,
            )
        try:
            wait_for("PostgreSQL", lambda: _accepts_connections(port))
            yield port
        finally:
            # Ends connections that are still open.
            server.send_signal(signal.SIGINT)
            server.wait(timeout=PATIENCE)


def _account():
    """Return whom PostgreSQL runs as, where it does not run as the user who runs the tests."""
    if os.getuid() != 0:
        return {}
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError(f"PostgreSQL does not run as root, and there is none of {', '.join(UNPRIVILEGED)}")


def connect(port):
    return psycopg.connect(host="127.0.0.1", port=port, user="airflow", dbname="postgres", autocommit=True)


def _accepts_connections(port):
    with contextlib.suppress(psycopg.OperationalError), connect(port):
        return True
    return False


def dump(port):
    """Return all that is in the database, as text."""
    command = [program("pg_dump"), "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", "postgres"]
    return subprocess.run(command, check=True, capture_output=True).stdout
