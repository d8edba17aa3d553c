"""Targets of Makefiles, justfiles and Taskfiles: which are used, and which programs they need."""

from __future__ import annotations

import time

import pytest

from gibil_bot.detection import make
from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project


def facts(files: dict[str, str], *more: str) -> Facts:
    found = make.facts(Project(frozenset((*files, *more)), {path: text.encode() for path, text in files.items()}))
    assert found is not None
    return found


COBRA = 'BIN="./bin"\n.PHONY: fmt lint test\nlint:\n\tgolangci-lint run -v\n\ntest: install_deps\n\t$(info *** tests ***)\n' + (
    "\tgo test -v $(GO_TEST_FLAGS) ./...\n\ninstall_deps:\n\tgo get -v ./...\n"
)
REAL = {
    "cobra": (COBRA, ("make", "go"), "Makefile:6 (test)"),
    "django-filter": ("test:\n\t./runtests.py\n", ("make", "./runtests.py"), "Makefile:1 (test)"),
    "multidict": (
        "all: test\n.install-deps: $(shell find requirements)\n\tpip install -r dev.txt\n\t@touch .install-deps\n"
        ".develop: .install-deps\n\tpip install -e .\ntest: .develop\n\t@pytest -q\n",
        ("make", "pytest", "pip", "touch"),
        "Makefile:7 (test)",
    ),
    "rich": ("test:\n\tTERM=unknown pytest --cov=rich tests/ -vv\n", ("make", "pytest"), "Makefile:1 (test)"),
    "pydantic-settings": (".PHONY: test\ntest:\n\tuv run coverage run -m pytest\n", ("make", "uv"), "Makefile:2 (test)"),
    "psr7": ("test:\n\tvendor/bin/phpunit $(TEST)\n", ("make", "vendor/bin/phpunit"), "Makefile:1 (test)"),
    "cjson": ("CC = gcc -std=c89\ntest: all\n\t./cJSON_test\nall:\n\t$(CC) -c cJSON.c\n", ("make", "gcc"), "Makefile:2 (test)"),
    "check": ("check::\n\tfor i in 1 2; do ./configure && prove $$i; done\n", ("make", "prove"), "Makefile:1 (check)"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_target_needs_the_programs_of_its_recipe_and_of_what_it_depends_on(name: str) -> None:
    text, needs, evidence = REAL[name]
    (candidate,) = facts({"Makefile": text}, "runtests.py").tests
    assert candidate.needs == needs
    assert str(candidate.evidence) == evidence
    assert candidate.run in ("make test", "make check")
    assert candidate.check == f"make -n {candidate.run.split()[1]}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("test:\n\tTOX_SKIP_ENV=perf tox --skip-missing-interpreters -p all\n", "tox for every version"),
        ("test:\n\tuv run --group dev --python 3.10 pytest\n\tuv run --python=3.11 pytest\n", "with 2 versions of Python"),
        ("test:\n\tpython3.9 -m unittest && python3.12 -m unittest\n", "with 2 versions of Python"),
        ("test:\n\ttox\n", "all environments of tox"),
        ("test:\n\tpython -m tox -q\n", "all environments of tox"),
        ("test:\n\tnox\n", "all sessions of nox"),
        ("test:\n\tdocker compose run web pytest\n", "needs docker"),
        ("test: up\n\tpytest\nup:\n\tcd x && docker-compose up -d\n", "needs docker-compose"),
        ("test:\n\t. venv/bin/activate; pytest\n", "virtual environment"),
        ("test:\n\t.venv/bin/pytest\n", "virtual environment"),
        ("test:\n\tsource env/bin/activate && pytest\n", "virtual environment"),
        ("PYTHON = python\ntest:\n\t$(PYTHON) setup.py -q test\n", "no longer has `setup.py test`"),
        ("PYTHON=/usr/bin/python3\ntest:\n\tA=0 ${PYTHON} -I -m pytest\n", "it calls /usr/bin/python3"),
        ("check:\n\truff check .\n\tpython -m mypy x\n", "linters only"),
    ],
)
def test_some_targets_are_not_used_and_the_reason_is_reported(text: str, reason: str) -> None:
    found = facts({"Makefile": text})
    assert not found.tests
    assert reason in str(found.problems[0])


def test_a_target_may_create_its_own_environment() -> None:
    text = "venv:\n\tpython3 -m venv venv\ntest: venv\n\tvenv/bin/pytest\n"
    assert facts({"Makefile": text}).tests[0].run == "make test"
    assert facts({"Makefile": "test:\n\ttox -e py311\n"}).tests[0].needs == ("make", "tox")


def test_only_the_file_that_make_reads_counts() -> None:
    found = facts({"Makefile": "test:\n\ta\n", "GNUmakefile": "check:\n\tb\n"})
    assert [str(each.evidence) for each in found.tests] == ["GNUmakefile:1 (check)"]


def test_variables_and_assignments_are_not_targets() -> None:
    text = "test := 1\ntest ?= 2\ncheck = x: y\nother:\n\ttest: no\nifeq (a,b)\nendif\nlint: ; eslint .\n"
    found = facts({"Makefile": text})
    assert not found.tests
    assert [each.run for each in found.linters] == ["make lint"]
    assert found.linters[0].needs == ("make", "eslint")


def test_justfiles_and_taskfiles_have_targets_too() -> None:
    just = "py := 'python'\n\n@test *args: build\n    {{py}} -m pytest\n    pytest {{args}}\n    ruff --version\n\n"
    just += "build:\n  make all\n"
    found = facts({"justfile": just})
    assert found.tests[0].run == "just test"
    assert found.tests[0].needs == ("just", "pytest", "ruff", "make")
    assert [step.shown for step in found.steps] == ["pip install rust-just"]
    assert facts({"justfile": "build:\n  make\n"}).steps == ()
    task = "version: '3'\ntasks:\n  build: [go build ./...]\n  test:\n    deps: [build]\n    cmds:\n      - go test ./...\n"
    found = facts({"Taskfile.yml": task})
    assert (found.tests[0].run, found.tests[0].needs) == ("task test", ("task", "go"))
    assert str(found.tests[0].evidence) == "Taskfile.yml:4 (test)"


@pytest.mark.parametrize("text", ["tasks: [", "tasks: 7\n", "tasks: {test: {cmds: {x: 1}}, 3: 4}\n", "a: &a [*a]\n"])
def test_broken_taskfiles_are_not_errors(text: str) -> None:
    facts({"Taskfile.yml": text})


@pytest.mark.parametrize(
    "text",
    [
        "test: test\n\t$(MAKE) test\n",
        "A = $(B)$(B)\nB = $(A)$(A)\ntest:\n\t$(A)\n",
        "".join(f"t{n}: t{n + 1} t{n + 2}\n\techo\n" for n in range(3000)) + "test: t0\n",
        "test:\n" + "\tx '" * 30_000,
        "test: " + "a " * 100_000 + "\n\tx\n",
        " " * 250_000 + "\ntest:\n\tx\n",
        "test:\n\t" + "a;" * 100_000 + "\n",
        "a" * 250_000,
    ],
)
def test_cyclic_and_huge_files_are_read_quickly(text: str) -> None:
    started = time.process_time()
    facts({"Makefile": text, "justfile": text})
    assert time.process_time() - started < 5


def test_words_after_a_command_substitution_are_arguments() -> None:
    recipe = "echo in $$(pwd) home $$(ls $$(cd ..; pwd)) and; FOO=`date -u` pytest `x y` z 2>&1 | head >&2; a &>b"
    found = facts({"Makefile": f"test:\n\t{recipe}\n"})
    assert found.tests[0].needs == ("make", "pytest", "head", "a")
