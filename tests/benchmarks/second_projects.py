"""The projects of row_second: one for npm with more than 400 packages, one for uv, and any other folder.

Their tests take ten to twenty seconds of what tests usually do: requests to a server in the same process, a database,
templates, small files, other programs, and computing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.comparison import LeftOut

PREPARED_WITHIN_S = 600


@dataclass(frozen=True, kw_only=True)
class Project:
    """A repository, and how it is prepared and tested on this host without gibil."""

    name: str
    folder: Path
    prepare: str
    test: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def bare(self, script: str) -> str:
        """Run a script in the folder; return its output. Raises LeftOut if it fails."""
        try:
            done = subprocess.run(
                ["bash", "-c", script], cwd=self.folder, env=environment() | dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PREPARED_WITHIN_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LeftOut(f"{self.name}: `{script}` takes longer than {PREPARED_WITHIN_S} s") from None
        text = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            raise LeftOut(f"{self.name}: `{script}` failed: {text[-2000:]}")
        return text

    def untracked(self) -> list[str]:
        """Return the paths that preparing has created."""
        words = ["git", "ls-files", "-z", "--others", "--directory"]
        found = subprocess.run(words, cwd=self.folder, capture_output=True, check=True).stdout
        return [name for name in found.decode(errors="surrogateescape").split("\0") if name]

    def clean(self, kept: Sequence[str]) -> None:
        """Delete the untracked files apart from these paths: what earlier tests left.

        Every machine has a new checkout. For the uv project, hypothesis' data of earlier tests makes 1 s of 10.
        """
        excluded = [word for name in kept for word in ("-e", "/" + name.rstrip("/"))]
        subprocess.run(["git", "clean", "-qfdx", *excluded], cwd=self.folder, check=True)

    @property
    def packages(self) -> int | None:
        """The number of installed npm packages; None for other projects."""
        lock = self.folder / "package-lock.json"
        return len(json.loads(lock.read_text())["packages"]) - 1 if lock.exists() else None


def runtime_in(output: str) -> str:
    """Return the version of Node or Python that a test run printed; empty if it printed none."""
    found = re.search(r"\b(node v\d+\.\d+\.\d+|Python \d+\.\d+\.\d+)", output)
    return found[1] if found else ""


def environment() -> dict[str, str]:
    """Return the environment without our virtual environment and settings, apart from what machines may reach."""
    ours = Path(sys.executable).parent
    path = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if Path(each) != ours)
    passed = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIBIL_", "PYTHON", "VIRTUAL_ENV", "GIT_")) or name == "GIBIL_EGRESS_ALLOW"
    }
    return passed | {"PATH": path}


def npm_project(folder: Path) -> Project:
    if shutil.which("npm") is None:
        raise LeftOut("npm is not installed")
    files: dict[str, str] = {
        "package.json": json.dumps(_PACKAGE, indent=2) + "\n",
        ".gitignore": "node_modules\n",
        "app.js": _APP,
        **{f"test/{name}.test.js": _NODE_TESTS.replace("NUMBER", str(number)) for number, name in enumerate(_PARTS)},
    }
    project = Project(name="npm", folder=folder, prepare="npm ci --no-audit --no-fund", test="npm test")
    _write(folder, files)
    project.bare("npm install --package-lock-only --no-audit --no-fund")
    _commit(folder)
    return project


def uv_project(folder: Path, uv: Path) -> Project:
    """`uv`: the program for the side without gibil, which uses the distribution's Python, as a local machine does."""
    python = "/usr/bin/python3"
    if not Path(python).exists():
        raise LeftOut(f"{python} does not exist")
    files: dict[str, str] = {
        "pyproject.toml": _PYPROJECT,
        ".gitignore": ".venv\n__pycache__\n*.egg-info\n",
        "src/shop/__init__.py": _SHOP,
        **{f"tests/test_{name}.py": _PYTHON_TESTS.replace("NUMBER", str(number)) for number, name in enumerate(_PARTS[:4])},
    }
    project = Project(
        name="uv", folder=folder, prepare=f"{uv} sync --locked", test=".venv/bin/pytest",
        environment={"UV_PYTHON": python, "UV_SYSTEM_CERTS": "true"},
    )  # fmt: skip
    _write(folder, files)
    project.bare(f"{uv} lock")
    _commit(folder)
    return project


def any_project(source: Path, folder: Path, prepare: str, test: str) -> Project:
    """Return a clone of another repository."""
    project = Project(name=source.name, folder=folder, prepare=prepare, test=test)
    subprocess.run(["git", "clone", "--quiet", str(source), str(folder)], check=True)
    return project


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _commit(folder: Path) -> None:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for words in (["init", "--quiet", "-b", "main"], ["add", "--all"], [*identity, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


_PARTS = ("orders", "customers", "invoices", "stock", "prices", "reports", "search", "sessions")

_PACKAGE = {
    "name": "shop",
    "version": "1.0.0",
    "private": True,
    "scripts": {"test": "node --version | sed 's/^/node /' && jest --maxWorkers=2"},
    "dependencies": {"express": "^4.19.0", "lodash": "^4.17.21", "pug": "^3.0.3"},
    "devDependencies": {
        "@babel/preset-env": "^7.24.0", "eslint": "^8.57.0", "jest": "^29.7.0", "supertest": "^7.0.0",
    },
    "jest": {"transform": {}},
}  # fmt: skip

_APP = """\
'use strict';
const express = require('express');
const _ = require('lodash');
const pug = require('pug');

const page = pug.compile(['ul', '  each item in items', '    li #{item.name}: #{item.price}'].join('\\n'));

module.exports = () => {
  const app = express();
  const items = _.range(200).map((number) => ({ name: `item ${number}`, price: (number * 7919) % 1000 }));
  app.use(express.json());
  app.get('/items', (request, response) => response.json(_.sortBy(items, 'price')));
  app.get('/page', (request, response) => response.send(page({ items })));
  app.post('/items', (request, response) => response.status(201).json(_.cloneDeep(request.body)));
  return app;
};
"""

_NODE_TESTS = """\
'use strict';
const { execFileSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const babel = require('@babel/core');
const { Linter } = require('eslint');
const request = require('supertest');
const app = require('../app')();

const source = fs.readFileSync(require.resolve('../app'), 'utf8');

test.each([...Array(60).keys()])('requests %i', async (number) => {
  const listed = await request(app).get('/items').expect(200);
  expect(listed.body).toHaveLength(200);
  const page = await request(app).get('/page').expect(200);
  expect(page.text).toContain('item 7');
  await request(app).post('/items').send({ number }).expect(201, { number });
});

test.each([...Array(10).keys()])('compiles and lints %i', (number) => {
  const options = { presets: ['@babel/preset-env'], cwd: path.dirname(__dirname) };
  const compiled = babel.transformSync(`${source}\\n// NUMBER ${number}`, options);
  expect(compiled.code).toContain('express');
  const found = new Linter().verify(source, { parserOptions: { ecmaVersion: 2022 }, rules: { 'no-undef': 'error' } });
  expect(found.length).toBeGreaterThan(0);
});

test('files', () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'shop-'));
  for (let number = 0; number < 500; number++) fs.writeFileSync(path.join(folder, `${number}`), crypto.randomBytes(2048));
  expect(fs.readdirSync(folder).map((name) => fs.statSync(path.join(folder, name)).size)).toContain(2048);
  fs.rmSync(folder, { recursive: true });
});

test.each([...Array(6).keys()])('another program %i', () => {
  expect(execFileSync(process.execPath, ['-e', 'console.log(6 * 7)']).toString()).toBe('42\\n');
});

test('computing', () => {
  expect(crypto.pbkdf2Sync('shop', 'NUMBER', 600000, 64, 'sha512')).toHaveLength(64);
});
"""

_PYPROJECT = """\
[project]
name = "shop"
version = "1.0.0"
requires-python = ">=3.9"
dependencies = ["jinja2", "pydantic", "sqlalchemy", "werkzeug"]

[dependency-groups]
dev = ["hypothesis", "pytest", "requests"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

_SHOP = '''\
"""A shop: a database of items, a page that shows them, and a server."""

import json

import jinja2
import pydantic
import sqlalchemy as sa
from werkzeug.wrappers import Request, Response

PAGE = jinja2.Environment().from_string("{% for item in items %}<li>{{ item.name }}: {{ item.price }}</li>{% endfor %}")
metadata = sa.MetaData()
items = sa.Table("items", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("price", sa.Integer))


class Item(pydantic.BaseModel):
    name: str
    price: int = pydantic.Field(ge=0)


def database(path):
    engine = sa.create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    return engine


def add(engine, found):
    with engine.begin() as connection:
        connection.execute(sa.insert(items), [item.model_dump() for item in found])


def listed(engine):
    with engine.connect() as connection:
        return [Item(name=row.name, price=row.price) for row in connection.execute(sa.select(items).order_by(items.c.price))]


def server(engine):
    @Request.application
    def respond(request):
        found = listed(engine)
        if request.path == "/page":
            return Response(PAGE.render(items=found), mimetype="text/html")
        return Response(json.dumps([item.model_dump() for item in found]), mimetype="application/json")

    return respond
'''

_PYTHON_TESTS = """\
import hashlib
import subprocess
import sys
import threading

import pytest
import requests
import shop
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.serving import make_server


@pytest.fixture
def engine(tmp_path):
    found = shop.database(tmp_path / "shop.db")
    shop.add(found, [shop.Item(name=f"item {number}", price=number * 7919 % 1000) for number in range(300)])
    return found


@pytest.mark.parametrize("number", range(25))
def test_items_are_sorted(engine, number):
    prices = [item.price for item in shop.listed(engine)]
    assert prices == sorted(prices)


@pytest.mark.parametrize("number", range(10))
def test_requests(engine, number):
    server = make_server("127.0.0.1", 0, shop.server(engine))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        for _ in range(5):
            assert len(requests.get(f"http://127.0.0.1:{server.port}/items", timeout=10).json()) == 300
            assert "item 7" in requests.get(f"http://127.0.0.1:{server.port}/page", timeout=10).text
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.lists(st.builds(shop.Item, name=st.text(), price=st.integers(0, 1000))))
def test_pages_show_every_item(found):
    assert shop.PAGE.render(items=found).count("<li>") == len(found)


def test_files(tmp_path):
    for number in range(500):
        (tmp_path / str(number)).write_bytes(bytes(2048))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 500 * 2048


@pytest.mark.parametrize("number", range(4))
def test_another_program(number):
    done = subprocess.run([sys.executable, "-c", "import json, shop; print(6 * 7)"], capture_output=True, check=True)
    assert done.stdout == b"42\\n"


def test_computing():
    assert len(hashlib.pbkdf2_hmac("sha512", b"shop", b"NUMBER", 600_000)) == 64
"""
