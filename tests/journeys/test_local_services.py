"""Services of `.gibil.yml` on local machines: a real PostgreSQL serves the tasks; unsupported services are rejected early."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.doubles.commandline import CommandLine

pytestmark = pytest.mark.usefixtures("local_machines")

FILE = """
services:
  db: {image: "postgres@TAG@", env: {POSTGRES_PASSWORD: "it's", POSTGRES_USER: ada, POSTGRES_DB: engine}, ports: ["15432:5432"]}
tasks:
  - name: test
    env: {PGPASSWORD: "it's", PGHOST: 127.0.0.1, PGPORT: "15432", PGUSER: ada}
    run: |
      psql -d engine -qAtc 'create table notes as select generate_series(1, 4) as n; select sum(n) from notes'
      ! PGPASSWORD=wrong psql -d engine -c 'select 1' 2>/dev/null
  - {name: again, run: PGPASSWORD="it's" psql -h 127.0.0.1 -p 15432 -U ada -d engine -Atc 'select count(*) from notes'}
"""


def postgres_version() -> str:
    """Return the installed major version, so that no network is needed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or shutil.which("psql") is None:
        pytest.skip("PostgreSQL is not installed on this host: apt-get install postgresql")
    return found[-1].parts[4]


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL does not run on machines of an ordinary user: they have a single uid")
def test_a_postgres_service_answers_every_task_created_and_tried(line: CommandLine) -> None:
    line.repository("project", {".gibil.yml": FILE.replace("@TAG@", f":{postgres_version()}-alpine")})
    created = line.gibil("create", "--name", "db", "--repo", f"file://{line.here}/project", "--wait", "tasks")
    log = line.gibil("logs", "db").stdout
    assert created.returncode == 0, created.stderr + log
    assert re.search(r"=== services\n(.*\n)*gibil: db listens on 127\.0\.0\.1:15432 after \d+ s\n(.*\n)*=== ready", log)
    assert re.search(r"=== test\n10\n(.*\n)*=== again\n4\n", log)
    later = line.gibil(
        "run", "db", "PGPASSWORD=\"it's\" psql -h 127.0.0.1 -p 15432 -U ada -d engine -Atc 'table notes limit 1'"
    )
    assert later.stdout == "1\n", later.stderr
    line.gibil("destroy", "db")
    tried = line.gibil("try", "project")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    for task in ("services", "test", "again"):
        assert f"{task}: success" in tried.stderr


def test_an_unsupported_service_is_rejected_before_a_machine_is_created(line: CommandLine) -> None:
    text = 'services:\n  search: {image: "elasticsearch:8", ports: [9200]}\ntasks: [{name: test, run: "true"}]\n'
    line.repository("project", {".gibil.yml": text})
    for arguments in (("create", "--name", "search", "--repo", f"file://{line.here}/project"), ("try", "project")):
        done = line.gibil(*arguments)
        assert done.returncode == 2, done.stderr
        assert ":2:3: the service 'search': local machines run no containers" in done.stderr
        assert "use machines in the cloud" in done.stderr
    assert line.json("list") == []


def test_postgres_is_rejected_only_if_it_would_run_as_root(line: CommandLine) -> None:
    """With a version that doesn't exist, so that neither case creates a machine."""
    line.repository("project", {".gibil.yml": FILE.replace("@TAG@", ":1")})
    done = line.gibil("create", "--name", "db", "--repo", f"file://{line.here}/project")
    assert done.returncode == 2, done.stderr
    assert ("PostgreSQL doesn't run as root" in done.stderr) == (os.geteuid() != 0)
    assert line.json("list") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL does not run on machines of an ordinary user: they have a single uid")
def test_a_service_that_fails_shows_its_log_and_no_task_runs(line: CommandLine) -> None:
    text = FILE.replace("@TAG@", f":{postgres_version()}").replace("POSTGRES_USER: ada", "POSTGRES_USER: pg_ada")
    line.repository("project", {".gibil.yml": text})
    done = line.gibil("try", "project")
    assert done.returncode == 7
    shown = done.stdout + done.stderr
    assert 'superuser name "pg_ada" is disallowed' in shown
    assert "db: initdb failed; its log is above" in shown
    assert "test: success" not in shown
