"""Projects on local machines get missing runtimes through the egress proxy: Python, Node and Go."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.doubles.commandline import CommandLine

pytestmark = pytest.mark.usefixtures("local_machines")

GO = {
    "go.mod": "module example.com/sum\n\ngo 1.21\n",
    "sum.go": "package sum\n\nfunc Of(a, b int) int { return a + b }\n",
    # Nothing that compiles Go's standard library, which comes as source and takes a quarter of a minute.
    ".gibil.yml": 'runtime: {go: "1"}\ntasks: [{name: build, run: go version && go build .}]\n',
}
NODE = {
    "package.json": '{"name": "sum", "private": true, "scripts": {"test": "node --test"}, "packageManager": "pnpm@10.0.0"}\n',
    "pnpm-lock.yaml": "lockfileVersion: '9.0'\nimporters:\n  .: {}\n",
    "sum.test.js": "require('node:test')('sum', () => require('node:assert').equal(2 + 3, 5));\n",
    ".gibil.yml": (
        "runtime: {node: '@NODE@'}\ntasks:\n  - {name: install, run: pnpm install --frozen-lockfile --offline}\n"
        "  - {name: test, run: pnpm test}\n"
    ),
}
PYTHON = {
    "sum.py": "def of(a, b):\n    return a + b\n",
    "test_sum.py": (
        "import unittest, sum\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(sum.of(2, 3), 5)\n"
    ),
    ".gibil.yml": "runtime: {python: '@PYTHON@'}\ntasks: [{name: test, run: python3 -m unittest -q}]\n",
}


def created(line: CommandLine, name: str, egress: str) -> str:
    """Create a machine, wait for its tasks, and return its log."""
    done = line.gibil(
        "create", "--name", name, "--repo", f"file://{line.here}/{name}", "--wait", "tasks", GIBIL_EGRESS_ALLOW=egress
    )
    log = line.gibil("logs", name).stdout
    line.gibil("destroy", name)
    assert done.returncode == 0, done.stderr + log
    return log


def tried(line: CommandLine, name: str, egress: str) -> str:
    """Run `gibil try` and return its output."""
    done = line.gibil("try", name, GIBIL_EGRESS_ALLOW=egress)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test: success" in done.stderr
    return done.stdout + done.stderr


def test_a_python_project_is_tested_with_the_hosts_python(line: CommandLine) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin") is None and shutil.which("python3", path="/usr/bin"):
        version = "3"
    line.repository("python", {name: text.replace("@PYTHON@", version) for name, text in PYTHON.items()})
    assert f"gibil: python {version}" in created(line, "python", "")
    tried(line, "python", "")


def test_a_node_project_gets_its_pnpm(line: CommandLine, egress: str) -> None:
    if shutil.which("node", path="/usr/local/bin:/usr/bin") is None:
        pytest.skip("this host has no node in /usr, and downloading one takes too long: apt-get install nodejs")
    line.repository("node", {name: text.replace("@NODE@", "20") for name, text in NODE.items()})
    assert "gibil: node 20" in tried(line, "node", egress)


def test_a_go_project_gets_its_go(line: CommandLine, egress: str) -> None:
    line.repository("go", GO)
    log = created(line, "go", egress)
    assert "gibil: go 1." in log
