"""A PostgreSQL server for tests, in a temporary folder, on a port of the loopback interface."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

TEST_ALL = os.environ.get("CYNOSURE_TEST_ALL") == "1"


def binaries():
    """Return the folder of the newest server that is installed, None where there is none."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3])
    )
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A server that can be stopped and started."""

    def __init__(self):
        self.folder = binaries()
        self.work = Path(tempfile.mkdtemp(prefix="cynosure-pg-", dir="/tmp"))
        self.data = self.work / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.user = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(self.work, account.pw_uid, account.pw_gid)
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.call("initdb", "-D", self.data, "-U", "tester", "-A", "trust", "-N", "--locale=C",
                  "-E", "UTF8")
        (self.data / "postgresql.auto.conf").write_text(
            "fsync = off\nlisten_addresses = '127.0.0.1'\n"
            f"unix_socket_directories = ''\nport = {self.port}\n"
        )
        self.start()

    def call(self, program, *arguments):
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            [self.folder / program, *map(str, arguments)], cwd="/", env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=60,
            **self.user,
        )
        assert done.returncode == 0, done.stdout.decode()

    def start(self):
        self.call("pg_ctl", "-D", self.data, "-w", "-l", self.work / "log", "start")

    def stop(self):
        self.call("pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    def new_database(self):
        """Empty the one database and return its URL; to make another takes ten times as long."""
        url = f"postgresql://tester@127.0.0.1:{self.port}/postgres"
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return url

    def close(self):
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self.work, ignore_errors=True)


@pytest.fixture(scope="session")
def server():
    if binaries() is None:
        (pytest.fail if TEST_ALL else pytest.skip)("postgres")
    running = Server()
    yield running
    running.close()
