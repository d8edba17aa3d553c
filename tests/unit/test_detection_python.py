"""What Python's manifests say: the relevant lines of real projects, and pathological ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from gibil_bot.detection import hatch, python, tox
from gibil_bot.detection.environments import EnvironmentFacts
from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import group_requirements
from gibil_bot.detection.python_versions import choose, pinned, satisfied_by


def project(files: dict[str, str], *more: str) -> Project:
    return Project(frozenset((*files, *more)), {path: text.encode() for path, text in files.items()})


def facts(files: dict[str, str], *more: str) -> Facts:
    found = python.facts(project(files, *more))
    assert found is not None
    return found


def installs(found: Facts) -> list[str]:
    return [step.shown for step in found.steps]


def commands(found: Facts) -> list[str]:
    return [candidate.shown or candidate.run for candidate in found.tests]


ATTRS = {
    "pyproject.toml": '[project]\nname = "attrs"\nrequires-python = ">=3.10"\ndynamic = ["version"]\n[dependency-groups]\n'
    'tests = ["hypothesis", "pytest>9", "pytest-xdist[psutil]"]\nlint = ["ruff"]\n[tool.pytest]\nstrict = true\n',
    "uv.lock": "version = 1\n",
    ".python-version-default": "3.14\n",
    "tox.ini": "[testenv]\nrunner = uv-venv-lock-runner\ndependency_groups =\n    tests: tests\n    mypy: mypy\ncommands =\n"
    "    tests: pytest {posargs:-n auto}\n    mypy: mypy typing_tests\n"
    "[testenv:3.1{0,4}-tests]\ncommands =\n    coverage run -m pytest\n",
    "tests/test_make.py": "import pytest\n",
}
CLICK = {
    "pyproject.toml": '[build-system]\nrequires = ["flit_core"]\n[project]\nname = "click"\nrequires-python = ">=3.10"\n'
    '[dependency-groups]\ndev = ["ruff", "tox"]\ntests = ["pytest"]\n[tool.pytest.ini_options]\ntestpaths = ["tests"]\n'
    '[tool.tox]\nenv_list = ["py3.14"]\n[tool.tox.env_run_base]\ndependency_groups = ["tests"]\ncommands = [[\n'
    '    "pytest", "-v", "--basetemp={env_tmp_dir}",\n    {replace = "posargs", default = [], extend = true},\n]]\n',
    "uv.lock": "version = 1\n",
    "tests/test_basic.py": "import pytest\n",
}
DJANGO_FILTER = {
    "pyproject.toml": '[build-system]\nrequires = ["flit_core"]\n[project]\nname = "django-filter"\n'
    'dependencies = ["Django>=5.2"]\nrequires-python = ">=3.10"\n'
    '[project.optional-dependencies]\ndrf = ["djangorestframework"]\n',
    "requirements/test.txt": "-r test-ci.txt\n",
    "requirements/test-ci.txt": "coverage\nunittest-xml-reporting\n",
    "requirements/docs.txt": "sphinx\n",
    "runtests.py": "#!/usr/bin/env python\n",
    "tox.ini": "[testenv]\ncommands = coverage run --parallel-mode ./runtests.py {posargs}\nsetenv =\n"
    "       PYTHONDONTWRITEBYTECODE=1\ndeps =\n    django52: Django>=5.2,<6.0\n    !latest: djangorestframework\n"
    "    latest: {[latest]deps}\n    -r requirements/test-ci.txt\n",
    "tests/test_filters.py": "from django.test import TestCase\n",
}
PLATFORMDIRS = {
    "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\n[project]\nname = "platformdirs"\nrequires-python = ">=3.10"\n'
    '[dependency-groups]\ndev = [{ include-group = "test" }]\ntest = ["appdirs==1.4.4", "pytest>=9", "pytest-mock"]\n',
    "tox.toml": '[env_run_base]\ndependency_groups = ["test"]\n'
    'set_env.COVERAGE_FILE = { replace = "env", name = "COVERAGE_FILE", '
    'default = "{work_dir}{/}.coverage.{env_name}" }\n'
    'commands = [\n  ["pytest", "--durations", "10",'
    ' { replace = "posargs", default = ["--cov", "{env_site_packages_dir}{/}platformdirs"], extend = true }, "tests"],\n'
    '  { replace = "posargs", default = [["diff-cover"]], extend = true },\n]\n',
    "tests/test_api.py": "import pytest\n",
}
MORE_ITERTOOLS = {
    "pyproject.toml": '[build-system]\nrequires = ["flit_core"]\n[project]\nname = "more-itertools"\n'
    'requires-python = ">=3.10"\n',
    "requirements/testing.txt": "coverage\n",
    "requirements/development.txt": "-r testing.txt\nmypy\n",
    "tox.ini": "[tox]\nenvlist = py310\n[testenv]\ncommands = {envpython} -m unittest -v {posargs}\n",
    "tests/__init__.py": "",
    "tests/test_more.py": "from unittest import TestCase\n",
}
REQUESTS = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "requests"\nrequires-python = ">=3.10"\n'
    '[project.optional-dependencies]\nsecurity = []\nsocks = ["PySocks"]\nuse_chardet_on_py3 = ["chardet"]\n'
    '[dependency-groups]\ntest = ["pytest", "httpbin"]\n[tool.pytest.ini_options]\ntestpaths = ["tests"]\n',
    "requirements-dev.txt": "-e .[socks]\npytest\n",
    "tox.ini": "[testenv]\ndeps = -rrequirements-dev.txt\n"
    "extras =\n    security\ncommands =\n    pip install -U -e .[socks]\n    pytest {posargs:tests}\n",
    "tests/test_requests.py": "import pytest\n",
}
RICH = {
    "pyproject.toml": '[tool.poetry]\nname = "rich"\n[tool.poetry.dependencies]\npython = ">=3.8.0"\npygments = "^2.13.0"\n'
    '[tool.poetry.dev-dependencies]\npytest = "^7.0.0"\nattrs = "~21.4"\n[build-system]\nrequires = ["poetry-core"]\n',
    "poetry.lock": '[[package]]\nname = "pygments"\nversion = "2.19.1"\n',
    "tests/test_bar.py": "from rich.bar import Bar\n",
}
PDM_BACKEND = {
    "pyproject.toml": '[build-system]\nrequires = []\n[project]\nname = "pdm-backend"\nrequires-python = ">=3.9"\n'
    '[dependency-groups]\ntest = ["pytest", "pytest-gitconfig"]\ndev = ["editables"]\n',
    "pdm.lock": "[metadata]\n",
    "tests/conftest.py": "import pytest\n",
    "tests/test_wheel.py": "",
}
TQDM = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "tqdm"\nrequires-python = ">=3.8"\n'
    "[tool.tox]\n"
    'legacy_tox_ini = """\n[core]\ndeps=\n    pytest\n    git+https://github.com/casperdcl/nbval\ncommands=\n'
    "    - {envpython} -m coveralls\n    {envpython} -m codecov -X pycov\n[testenv]\ndeps=\n    {[core]deps}\n    numpy\n"
    '    tf: tensorflow!=2.5.0\ncommands=\n    {envpython} -m pytest --cov=tqdm -k "not perf"\n    {[core]commands}\n"""\n',
    "tests/tests_main.py": "from pytest import mark\n",
}
DRF = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "djangorestframework"\n'
    "[dependency-groups]\n"
    'test = ["pytest-django"]\noptional = ["psycopg"]\n[tool.pytest.ini_options]\naddopts = "-ra"\n',
    "runtests.py": "",
    "tox.ini": "[testenv]\ncommands = pytest --cov {posargs}\ndependency_groups =\n       test\n       optional\n"
    "       django52: django52\nsetenv =\n       PYTHONWARNINGS=once\n",
    "tests/test_views.py": "import pytest\n",
}
STARLETTE = {
    "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\n[project]\nname = "starlette"\n'
    '[tool.pytest.ini_options]\naddopts = ""\n',
    "requirements.txt": "-e .[full]\npytest==8\n",
    "tests/test_routing.py": "import pytest\n",
}
SCRIPTS_WITHOUT_PROJECT = {"requirements.txt": "flask\n", "test_app.py": "import unittest\n"}

REAL = {
    "attrs": (ATTRS, ["uv sync --locked --no-default-groups --group tests"], ["pytest -n auto", "python -m pytest"]),
    "click": (
        CLICK,
        ["uv sync --locked --no-default-groups --group tests"],
        ["pytest -v --basetemp=/tmp/tox", "python -m pytest"],
    ),
    "django-filter": (
        DJANGO_FILTER,
        ["pip install -e . -r requirements/test.txt -r requirements/test-ci.txt djangorestframework"],
        [
            "PYTHONDONTWRITEBYTECODE=1 coverage run --parallel-mode ./runtests.py",
            "python runtests.py",
            "python -m unittest discover -v -s tests",
        ],
    ),
    "platformdirs": (
        PLATFORMDIRS,
        ["pip install -e . --group test pytest"],
        ["pytest --durations 10 tests", "python -m pytest"],
    ),
    "more-itertools": (
        MORE_ITERTOOLS,
        ["pip install -e . -r requirements/testing.txt"],
        ["python -m unittest -v", "python -m unittest discover -v -s tests -t ."],
    ),
    "requests": (
        REQUESTS,
        ["pip install -e '.[security,socks]' --group test -r requirements-dev.txt pytest"],
        ["pytest tests", "python -m pytest"],
    ),
    "rich": (RICH, ["poetry install --no-interaction"], ["python -m pytest", "python -m unittest discover -v -s tests"]),
    "pdm-backend": (PDM_BACKEND, ["pdm sync --group test"], ["python -m pytest"]),
    "tqdm": (
        TQDM,
        ["pip install -e . git+https://github.com/casperdcl/nbval pytest numpy"],
        ["python -m pytest --cov=tqdm -k 'not perf'", "python -m pytest"],
    ),
    "django-rest-framework": (
        DRF,
        ["pip install -e . --group test --group optional pytest"],
        ["PYTHONWARNINGS=once pytest --cov", "python runtests.py", "python -m pytest"],
    ),
    "starlette": (STARLETTE, ["pip install -e . -r requirements.txt pytest"], ["python -m pytest"]),
    "scripts": (SCRIPTS_WITHOUT_PROJECT, ["pip install -r requirements.txt"], ["python -m unittest discover -v"]),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_projects_manifests_say_how_it_is_installed_and_tested(name: str) -> None:
    files, steps, tests = REAL[name]
    found = facts(files)
    assert installs(found) == steps
    assert commands(found) == tests


def test_every_step_and_candidate_names_its_file_and_line() -> None:
    found = facts(ATTRS)
    assert str(found.runtimes[0].evidence) == ".python-version-default:1 (3.14)"
    assert str(found.tests[0].evidence) == "tox.ini:7 (tox testenv)"
    assert found.steps[0].inputs == ("uv.lock", "pyproject.toml")
    assert str(facts(CLICK).tests[1].evidence) == "pyproject.toml:9 ([tool.pytest])"


def test_a_project_without_dependencies_is_installed_too() -> None:
    files = {"pyproject.toml": '[build-system]\nrequires = ["flit_core"]\n[project]\nname = "a"\n', "tests/test_a.py": ""}
    assert installs(facts(files)) == ["pip install -e ."]


def test_an_old_project_keeps_its_extras_in_setup_files() -> None:
    setup = "from setuptools import setup\n"
    setup += "setup(name='a', extras_require={'test': ['pytest'], 'docs': []}, python_requires='>=3.12')\n"
    found = facts({"setup.py": setup, "tests/test_a.py": "import pytest\n"})
    assert installs(found) == ["pip install -e '.[test]' pytest"]
    assert found.runtimes[0].version == "3.13"
    assert found.runtimes[0].accepts == ("3.12", "3.14")
    config = "[metadata]\nname = a\n[options.extras_require]\ntesting =\n    pytest\n[tool:pytest]\naddopts = -ra\n"
    assert installs(facts({"setup.cfg": config, "setup.py": "", "test_a.py": ""})) == ["pip install -e '.[testing]' pytest"]


def test_development_requirements_are_used_only_without_those_for_tests() -> None:
    project_table = '[build-system]\nrequires = []\n[project]\nname = "a"\n[project.optional-dependencies]\ndev = ["pytest"]\n'
    files = {"pyproject.toml": project_table, "requirements-dev.txt": "", "tests/test_a.py": ""}
    assert installs(facts(files))[0].startswith("pip install -e '.[dev]' -r requirements-dev.txt")
    files |= {"pyproject.toml": f'{project_table}tests = ["pytest"]\n', "requirements-test.txt": ""}
    assert installs(facts(files))[0].startswith("pip install -e '.[tests]' -r requirements-test.txt")


def test_hatch_environments_and_pdm_groups_count() -> None:
    hatch = '[project]\nname = "a"\n[tool.hatch.envs.default]\ndependencies = ["pytest-cov", "pytest"]\n'
    assert installs(facts({"pyproject.toml": hatch, "tests/test_a.py": ""})) == ["pip install -e . pytest-cov pytest"]
    pdm = '[project]\nname = "a"\n[tool.pdm.dev-dependencies]\ntest = ["pytest<9"]\n'
    assert installs(facts({"pyproject.toml": pdm, "tests/test_a.py": ""})) == ["pip install -e . 'pytest<9'"]


def test_an_environment_of_hatch_with_another_name_counts_if_a_script_of_it_tests() -> None:
    default = "[tool.hatch.envs.default]\ndependencies = ['ruff']\n"
    docs = "[tool.hatch.envs.docs]\ndependencies = ['sphinx']\n[tool.hatch.envs.docs.scripts]\nbuild = 'sphinx-build docs'\n"
    dev = "[tool.hatch.envs.dev]\ndependencies = ['pytest', 'lxml']\nscripts.tests = 'pytest {args:tests}'\n"
    found = facts({"pyproject.toml": f'[project]\nname = "a"\n{default}{docs}{dev}', "tests/test_a.py": ""})
    assert installs(found) == ["pip install -e . ruff pytest lxml"]
    assert commands(found)[0] == "pytest tests"
    found = facts({"pyproject.toml": f'[project]\nname = "a"\n{default}{docs}', "tests/test_a.py": ""})
    assert installs(found) == ["pip install -e . ruff"]


def test_the_file_and_the_scripts_of_hatch_are_read() -> None:
    base = {"pyproject.toml": '[project]\nname = "a"\n', "tests/test_a.py": "import pytest\n", "backend/pyproject.toml": ""}
    own = '[envs.hatch-test]\nworkspace.members = ["backend/", "../x"]\nextra-dependencies = ["trustme"]\n'
    found = facts({**base, "hatch.toml": own})
    assert installs(found) == [
        "pip install -e . -e ./backend 'coverage[toml]' pytest pytest-mock pytest-rerunfailures 'pytest-xdist[psutil]' trustme"
    ]
    scripts = (
        '[envs.default]\ndependencies = ["pytest"]\n[envs.default.scripts]\ncov = "test --cov"\n'
        'run-tests = "pytest {args:tests}"\ntest = "run-tests -q"\nloop = "loop"\n[envs.test]\nfeatures = ["x"]\n'
        '[envs.test.env-vars]\nMODE = "full"\n'
    )
    found = facts({**base, "hatch.toml": scripts})
    assert installs(found) == ["pip install -e . pytest"]
    assert commands(found)[0] == "MODE=full pytest tests -q"


@pytest.mark.parametrize(
    ("read", "file", "text"),
    [
        (tox.read, "tox.ini", "[testenv]\npassenv = CI\nextras = a\ncommands =\n    pip install -e .[b]\n    pytest\n"),
        (hatch.read, "hatch.toml", '[envs.test]\nfeatures = ["a"]\nscripts.test = ["pip install -e .[b]", "pytest"]\n'),
    ],
)
def test_extras_that_a_command_installs_are_those_of_the_environment(
    read: Callable[[Project], EnvironmentFacts | None], file: str, text: str
) -> None:
    found = read(project({file: text}))
    assert found is not None
    assert found.extras == ("a", "b")
    assert found.candidate is not None
    assert found.candidate.run == "pytest"


NOX = """\
import nox
OPTIONS = ["-n", "auto"]

@nox.session
def lint(session):
    session.run("ruff", "check")

@nox.session(python=["3.11", "3.12", "3.13"], name="test")
def tests(session: nox.Session) -> None:
    session.install("coverage", "-r", "requirements/ci.txt")
    session.install("-e.[extra,more]", "--group=mocks", *nox.project.dependency_groups(P, "servers"))
    session.run("coverage", "run", "-m", "pytest", *OPTIONS, *(session.posargs or ["tests"]), env={"MODE": "full"})
    session.run("coverage", "report", "--fail-under", "100")
"""
NOX_BASE = {
    "pyproject.toml": '[project]\nname = "a"\n[project.optional-dependencies]\nextra = []\nmore = []\n'
    "[dependency-groups]\nmocks = []\nservers = []\n[tool.pytest]\n",
    "requirements/ci.txt": "",
    "tests/test_a.py": "import pytest\n",
}


def test_a_session_of_nox_is_read_without_running_it() -> None:
    found = facts({**NOX_BASE, "noxfile.py": NOX})
    assert installs(found) == [
        "pip install -e '.[extra,more]' --group servers --group mocks -r requirements/ci.txt coverage pytest"
    ]
    assert found.tests[0].run == ("""test $# != 0 || set -- tests; MODE=full coverage run -m pytest -n auto "$@\"""")
    assert str(found.tests[0].evidence) == "noxfile.py:9 (nox session test)"


@pytest.mark.parametrize(
    ("body", "command"),
    [
        ('    session.run("python", "build.py")\n    session.run("pytest")\n', "nox -s test -p VERSION"),
        ("    helper(session)\n", "nox -s test -p VERSION"),
        ('    session.run("pytest", *arguments())\n', "python -m pytest"),
        ('    if CI:\n        session.run("pytest", "-x")\n', "python -m pytest"),
    ],
)
def test_a_session_that_prepares_runs_with_nox_if_the_ci_does(body: str, command: str) -> None:
    text = f'import nox\n@nox.session(python=VERSIONS)\ndef test(session):\n    session.install("mock")\n{body}'
    ci = "jobs:\n  test:\n    steps:\n      - run: python -m nox -s test-${{ matrix.python }} -- -v\n"
    with_ci = {**NOX_BASE, "noxfile.py": text, ".github/workflows/ci.yml": ci}
    assert commands(facts(with_ci))[0] == command
    assert commands(facts({**NOX_BASE, "noxfile.py": text})) == ["python -m pytest"]
    assert "mock" in installs(facts(with_ci))[0]


def with_ci(files: dict[str, str], *runs: str) -> dict[str, str]:
    lines = "".join(f"      - run: {run}\n" for run in runs)
    return {
        **files,
        ".github/workflows/ci.yml": f"jobs:\n  lint:\n    steps:\n      - run: pip install x\n  test:\n    steps:\n{lines}",
    }


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (
            ["pip3 install '.[extra,other]' -r requirements/more.txt -r none.txt", "pytest"],
            "pip install -e '.[extra]' -r requirements/more.txt pytest",
        ),
        (["sudo python -m pip install -U pip tox mock # why", "pytest"], "pip install -e . mock pytest"),
        (
            ["uv pip install --group servers ./sub[a] ./none ${{ matrix.x }} >2", "pytest"],
            "pip install -e . --group servers -e './sub[a]' pytest",
        ),
        (["uv run --group servers --with httpx pytest -x"], "pip install -e . --group servers httpx pytest"),
        (["pip install --pre numpy", "pip install -f http://x y", "pytest"], "pip install -e . pytest"),
        (["pip install tox-docker", "tox -e py"], "pip install -e . pytest"),
        (["pip install 'unbalanced", "pytest"], "pip install -e . pytest"),
    ],
)
def test_what_the_job_that_tests_installs_counts(runs: list[str], expected: str) -> None:
    files = {"pyproject.toml": NOX_BASE["pyproject.toml"], "tests/test_a.py": "import pytest\n"}
    found = facts(with_ci(files, *runs), "requirements/more.txt", "sub/pyproject.toml")
    assert installs(found) == [expected]


def test_uv_installs_a_workspace_and_what_the_ci_names() -> None:
    pyproject = (
        '[project]\nname = "a"\n[dependency-groups]\ndev = []\ntests = []\nmore = []\n[tool.uv.workspace]\nmembers = ["core"]\n'
    )
    files = {"pyproject.toml": pyproject, "uv.lock": "", "tests/test_a.py": "import pytest\n"}
    assert installs(facts(files)) == ["uv sync --locked --all-packages --group tests"]
    found = facts(with_ci(files, "uv sync --frozen --group more --no-dev", "uv run --no-sync pytest"))
    assert installs(found) == ["uv sync --locked --all-packages --no-default-groups --group tests --group more"]


def test_a_lock_file_that_cant_be_used_is_followed_by_pip() -> None:
    pyproject = '[project]\nname = "a"\n[dependency-groups]\ntests = ["pytest"]\n'
    script = facts({"pyproject.toml": pyproject, "uv.lock": "", "tests/test_a.py": "import pytest\n"}).steps[0].run
    assert "else\nsay 'uv can'\"'\"'t use this lock file; installing what the manifests name with pip'\n" in script
    assert "resolve -e . + --group tests" in script


def test_a_group_with_an_address_is_installed_in_parts() -> None:
    pyproject = (
        '[project]\nname = "a"\n[dependency-groups]\nmore = ["mock"]\n'
        'tests = ["pytest", "leak @ git+https://example.org/leak", { include-group = "more" }]\n'
    )
    script = facts({"pyproject.toml": pyproject, "tests/test_a.py": "import pytest\n"}).steps[0].run
    assert "resolve -e . + 'leak @ git+https://example.org/leak' + pytest mock" in script


def test_optional_groups_of_poetry_are_installed_if_they_are_for_tests_or_the_ci_does() -> None:
    text = '[tool.poetry]\nname = "a"\n[tool.poetry.dependencies]\npython = "^3.9"\n' + "".join(
        f'[tool.poetry.group.{name}]\noptional = true\n[tool.poetry.group.{name}.dependencies]\n{name}-x = "*"\n'
        for name in ("test", "docs", "ci")
    )
    files = {"pyproject.toml": text, "poetry.lock": "", "tests/test_a.py": "import pytest\n"}
    assert installs(facts(files)) == ["poetry install --no-interaction --with test"]
    found = facts(with_ci(files, "poetry install --with=ci", "poetry run pytest"))
    assert installs(found) == ["poetry install --no-interaction --with test --with ci"]
    assert "test-x" in found.steps[0].run
    assert "docs-x" not in found.steps[0].run


def test_poetry_groups_have_an_equivalent_for_pip() -> None:
    text = (
        '[tool.poetry]\nname = "a"\n[tool.poetry.dependencies]\npython = "^3.9"\n[tool.poetry.group.test.dependencies]\n'
        'pytest = "^8.1"\nmock = {version = "~1.2", extras = ["x"]}\nlocal = {path = "../local"}\n'
        '[tool.poetry.group.docs]\noptional = true\n[tool.poetry.group.docs.dependencies]\nsphinx = "*"\n'
    )
    script = facts({"pyproject.toml": text, "poetry.lock": "", "tests/test_a.py": "import pytest\n"}).steps[0].run
    assert "resolve -e . + 'pytest>=8.1,<9' 'mock[x]>=1.2,<1.3'" in script
    assert "sphinx" not in script
    assert "versions_of poetry.lock" in script


def test_the_headers_of_a_c_library_are_installed() -> None:
    found = facts({"requirements.txt": "psycopg2>=2.9\nDjango\n", "manage.py": "", "app/tests.py": "", "app/test_a.py": ""})
    assert found.packages == ("libpq-dev",)
    assert facts({"requirements.txt": "psycopg2-binary\n", "test_a.py": "import unittest"}).packages == ()
    extension = {"setup.py": "setup(ext_modules=[Extension('a', ['a.c'])])", "tests/test_a.py": ""}
    assert facts(extension).packages == ("gcc", "python3-dev")


def test_django_projects_use_manage_py_unless_pytest_knows_their_settings() -> None:
    files = {"manage.py": "", "requirements.txt": "Django\n", "shop/test_cart.py": "from django.test import TestCase\n"}
    assert commands(facts(files))[0] == "python manage.py test"
    files |= {"pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = shop.settings\n"}
    assert commands(facts(files)) == ["python -m pytest", "python -m unittest discover -v"]


def test_other_projects_with_a_python_file_or_settings_are_not_python_projects() -> None:
    assert python.facts(project({"pyproject.toml": "[tool.ruff]\nline-length = 100\n"})) is None
    assert python.facts(project({"docs/conf.py": "", "main.go": ""})) is None
    assert python.facts(project({"tests/test_data.py": "print(1)\n"})) is None


def test_tests_of_a_project_in_another_language_are_the_last_resort() -> None:
    found = facts({"tests/test_output.py": "import unittest\n", "main.c": ""})
    assert [candidate.rank for candidate in found.tests] == [90]


def test_tools_from_repositories_that_uv_lock_names_are_optional() -> None:
    lock = (
        'version = 1\n\n[[package]]\nname = "strict-no-cover"\nversion = "0.1.1"\n'
        'source = { git = "https://github.com/pydantic/strict-no-cover?rev=7fc59da#7fc59da" }\n\n'
        '[[package]]\nname = "pytest"\nversion = "9.0.3"\nsource = { registry = "https://pypi.org/simple" }\n'
    )
    files = {
        "pyproject.toml": '[project]\nname = "mcp"\n[dependency-groups]\ndev = ["pytest"]\n',
        "test_a.py": "import pytest\n",
    }
    assert "+ sync_without_repositories --group dev; then" in facts({**files, "uv.lock": lock}).steps[0].run
    assert "+ sync_without_repositories" in facts(files, "uv.lock").steps[0].run  # too large to be read
    assert "+ sync_without_repositories" not in facts({**files, "uv.lock": "version = 1\n"}).steps[0].run


def test_cython_runs_first_if_the_repository_lacks_the_c_that_setup_compiles() -> None:
    files = {
        "setup.py": "setup(ext_modules=[Extension('msgpack._cmsgpack', sources=['msgpack/_cmsgpack.c'])])",
        "pyproject.toml": '[project]\nname = "msgpack"\n[dependency-groups]\ndev = ["cython>=3.2.5", "pytest>=9.0.3"]\n',
        "requirements.txt": "cython==3.2.5\nsetuptools==78.1.1\n",
        "msgpack/_cmsgpack.pyx": "",
        "test/test_buffer.py": "from pytest import raises\n",
    }
    first = facts(files).steps[0]
    assert first.shown == "cython msgpack/_cmsgpack.pyx"
    assert "pip_install cython==3.2.5\n" in first.run
    assert str(first.evidence) == "setup.py:1 (msgpack/_cmsgpack.c isn't in the repository)"
    assert facts(files, "msgpack/_cmsgpack.c").steps[0].shown.startswith("pip install -e .")
    assert facts({**files, "setup.py": f"{files['setup.py']}\ncythonize()"}).steps[0].shown.startswith("pip install -e .")


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ("pytest {posargs}", 'pytest "$@"'),
        ("pytest {posargs:-n auto tests}", 'test $# != 0 || set -- -n auto tests; pytest "$@"'),
        ("python -b -m pytest {toxinidir}/tests", "python -b -m pytest ./tests"),
        ("pytest \\\n    -x \\\n    {posargs}", 'pytest -x "$@"'),
        ("coverage erase\n    coverage run -m unittest\n    coverage report", "coverage run -m unittest"),
        ("{env:RUNNER:pytest} -q", "pytest -q"),
        ("pytest {tty:--color=yes} -k 'a b'", "pytest -k 'a b'"),
        ("pytest []", 'pytest "$@"'),
        ("{posargs:pytest -vv}", 'pytest -vv "$@"'),
        ("{posargs:bash}", None),
        ("python -bb -m package.test {posargs:}", 'python -bb -m package.test "$@"'),
        ("python -m build", None),
        ("pytest; rm -rf {homedir}", None),
        ("pytest {unknown}", None),
        ("pip install -e .[d]\n    pytest", "pytest"),
        ("pip install other\n    pytest", None),
        ("python -Wall {envbindir}/coverage run -p {envbindir}/trial {posargs:a}", 'test $# != 0 || set -- a; trial "$@"'),
        ("python -W error {envbindir}/pytest -x", "pytest -x"),
        ("{envbindir}/py.test", "py.test"),
        ("pytest --log={envbindir}/x", None),
        ("pytest\n    sphinx-build -b doctest docs {envdir}/doctest", "pytest"),
        ("make test", None),
        ("pytest 'unbalanced", None),
        ("ruff check .", None),
    ],
)
def test_a_command_of_tox_runs_without_tox(commands: str, expected: str | None) -> None:
    found = tox.read(project({"tox.ini": f"[testenv]\npassenv = CI\ncommands =\n    {commands}\n"}))
    assert found is not None
    assert (found.candidate.run if found.candidate else None) == expected


@pytest.mark.parametrize(
    ("condition", "applies"),
    [
        ("3.10,3.11,3.12,3.13", True),
        ("{py3,py310,py311,py312,py313}", True),
        ("test-py3{11,12,13},lint", True),
        ("!lint", True),
        ("py313", False),
        ("django{42,52}", False),
        ("{a,b}" * 12, False),
    ],
)
def test_a_condition_of_tox_applies_if_it_does_for_every_python_of_machines(condition: str, applies: bool) -> None:
    found = tox.read(project({"tox.ini": f"[testenv]\ndeps =\n    {condition}: pytest\n"}))
    assert found is not None
    assert found.requirements == ((("pytest",),) if applies else ())


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ("lint\n    py{39,310,311,312}-a3\n    py312-adev\n    py39-lowest\n    docs", ["a<4"]),
        ("py{310,311,312}-d42-{sqlite,postgres},py{310,311,312,313}-d52-{postgres,sqlite}", ["d==5", "lite"]),
        ("py311,py312,py313,py313-a3", []),
        ("pypy3-a3", []),
        ("", []),
    ],
)
def test_the_usual_environment_of_tox_is_chosen_from_its_list(listed: str, chosen: list[str]) -> None:
    text = f"[tox]\nenvlist =\n    {listed}\n[testenv]\ndeps =\n    a3: a<4\n    adev: a-dev\n    d42: d==4\n    d52: d==5\n"
    found = tox.read(project({"tox.ini": f"{text}    sqlite: lite\n    postgres: psycopg\n"}))
    assert found is not None
    assert [words[0] for words in found.requirements] == chosen


def test_an_environment_of_tox_that_is_named_for_versions_of_python_inherits_from_testenv() -> None:
    ini = "[tox]\nenvlist = py310\n[testenv]\ndeps = mock\n[testenv:docs]\ncommands = sphinx-build\n"
    ini += "[testenv:py27]\ncommands = nosetests\n"
    ini += "[testenv:py{310,311}-plugins]\ncommands = pytest plugins\n[testenv:py{310,311,312}]\nextras = testing\n"
    found = tox.read(project({"tox.ini": f"{ini}commands = pytest {{posargs:tests/}}\npassenv = CI\n"}))
    assert found is not None
    assert (found.requirements, found.extras) == ((("mock",),), ("testing",))
    assert found.candidate is not None
    assert found.candidate.shown == "pytest tests/"


def test_the_processes_of_tests_under_tox_have_the_same_hash_seed() -> None:
    found = facts(
        {"tox.ini": "[testenv]\ndeps = pytest-xdist\ncommands = pytest -n auto\n", "tests/test_a.py": "import pytest"}
    )
    assert found.env["PYTHONHASHSEED"] == "1"
    assert "PYTHONHASHSEED" not in facts({"pyproject.toml": "[project]\nname = 'a'", "tests/test_a.py": "import pytest"}).env


def test_requirements_of_tox_have_no_comments() -> None:
    text = "[testenv]\ndeps =\n    sybil >= 1.3  # https://example.org/issues/20#issue\n    git+https://example.org/a#egg=a\n"
    found = tox.read(project({"tox.ini": text}))
    assert found is not None
    assert found.requirements == (("sybil >= 1.3",), ("git+https://example.org/a#egg=a",))


def test_the_command_of_tox_runs_in_its_folder() -> None:
    text = "[testenv]\nchangedir = {toxinidir}/tests\nsetenv =\n    A = {toxinidir}/a\ncommands = pytest -c {toxinidir}/x.ini\n"
    found = tox.read(project({"tox.ini": text, "tests/test_a.py": ""}))
    assert found is not None
    assert found.candidate is not None
    assert found.candidate.run == 'cd tests; env -u CI A="$PWD/.."/a pytest -c ../x.ini'
    outside = tox.read(project({"tox.ini": text.replace("{toxinidir}/tests", "{toxworkdir}")}))
    assert outside is not None
    assert outside.candidate is not None
    assert outside.candidate.shown == 'A="$PWD"/a pytest -c ./x.ini'


def test_the_command_has_the_variables_of_tox() -> None:
    text = "[testenv]\nsetenv =\n    PYTHONPATH = {toxinidir}/src\n    MODE = it's\n    COVERAGE_FILE = x\ncommands = pytest\n"
    found = tox.read(project({"tox.ini": text}))
    assert found is not None
    assert found.candidate is not None
    assert found.candidate.run == """env -u CI PYTHONPATH="$PWD"/src MODE='it'"'"'s' pytest"""


@pytest.mark.parametrize(
    ("passed", "run"),
    [
        ("passenv = HOME, USER", 'test $# != 0 || set -- tests; env -u CI pytest "$@"'),
        ("pass_env =\n    HOME\n    C*", 'test $# != 0 || set -- tests; pytest "$@"'),
        ("passenv = ci", 'test $# != 0 || set -- tests; pytest "$@"'),
    ],
)
def test_a_command_of_tox_sees_ci_only_if_tox_passes_it_on(passed: str, run: str) -> None:
    found = tox.read(project({"tox.ini": f"[testenv]\n{passed}\ncommands = pytest {{posargs:tests}}\n"}))
    assert found is not None
    assert found.candidate is not None
    assert (found.candidate.run, found.candidate.shown) == (run, "pytest tests")


def test_what_coverage_measures_in_installed_packages_is_left_to_its_settings() -> None:
    command = "coverage run --append --source={envsitepackagesdir}/shop -m pytest tests"
    found = tox.read(project({"tox.ini": f"[testenv]\ncommands = {command}\n"}))
    assert found is not None
    assert found.candidate is not None
    assert found.candidate.shown == "coverage run --append -m pytest tests"
    found = tox.read(project({"tox.ini": "[testenv]\ncommands = pytest {envsitepackagesdir}/shop\n"}))
    assert found is not None
    assert found.candidate is None


@pytest.mark.parametrize(
    ("wanted", "version", "holds"),
    [
        (">=3.10", "3.10", True), (">=3.10", "3.9", False), (">=3.10.2", "3.10", True), ("<3.13", "3.13", False),
        ("<=3.12", "3.12", True), (">3.12", "3.12", True), (">=3.9,<4", "3.14", True), ("~=3.11", "3.12", True),
        ("~=3.11.2", "3.12", False), ("==3.11.*", "3.11", True), ("==3.11.*", "3.12", False), ("!=3.10.*,>=3.9", "3.10", False),
        ("!=3.10.0", "3.10", True), ("^3.9", "3.13", True), ("~3.9", "3.10", False),
        ("3.*", "3.11", True), ("3.12", "3.12", True),
        (">=2.7,!=3.0.*,!=3.1.*", "3.12", True), ("^2.7 || ^3.11", "3.11", True), ("*", "3.9", True),
        (">= 3.8 , < 3.12", "3.12", False),
        (">=3.8dev", "3.9", True), ("latest", "3.12", None), (">=3.10; x", "3.12", None), (">=" + "9" * 600, "3.12", None),
    ],
)  # fmt: skip
def test_a_range_of_versions_is_read_as_the_standards_say(wanted: str, version: str, holds: bool | None) -> None:
    assert satisfied_by(wanted, version) is holds


def test_the_machines_version_is_used_if_any_will_do() -> None:
    assert choose(">=3.10") == ("", ("3.13", "3.12", "3.11", "3.14", "3.10"))
    assert choose(">=3.12") == ("3.13", ("3.12", "3.14"))
    assert choose("<3.11") == ("3.10", ("3.9",))
    assert choose(">=3.14") == ("3.14", ())
    assert choose("") == choose(">=3.99") == choose("nonsense") == ("", ())


def test_version_files_are_read() -> None:
    for line, version in (
        ("3.12.4", "3.12"),
        ("python-3.11.9", "3.11"),
        ("cpython-3.13.0", "3.13"),
        ("pypy3.10", None),
        ("$(x)", None),
    ):
        assert pinned(line) == version
    base = {"pyproject.toml": '[project]\nname = "a"\nrequires-python = ">=3.11"\n', "tests/test_a.py": ""}
    for path, text in (
        (".python-version", "# ours\n3.12\n3.11\n"),
        ("runtime.txt", "python-3.12.1\n"),
        (".tool-versions", "nodejs 20\npython 3.12.7\n"),
        ("mise.toml", '[tools]\npython = { version = "3.12" }\n'),
    ):
        runtime = facts({**base, path: text}).runtimes[0]
        assert (runtime.name, runtime.version, runtime.evidence.path) == ("python", "3.12", path)
    assert facts({**base, "runtime.txt": "3.9\n"}).runtimes[0].version == ""  # it contradicts requires-python


def test_included_groups_may_form_a_cycle() -> None:
    groups: dict[str, list[Any]] = {
        "a": ["one", {"include-group": "B"}],
        "b": [{"include-group": "a"}, "two", 7, {"include-group": ["x"]}],
    }
    assert sorted(group_requirements(groups, "a")) == ["one", "two"]


BROKEN = [
    {"pyproject.toml": "[project\n", "tests/test_a.py": "import pytest\n"},
    {"pyproject.toml": 'project = "text"\ntool = 3\ndependency-groups = []\n', "tests/test_a.py": ""},
    {
        "pyproject.toml": "[project]\nrequires-python = 3\noptional-dependencies = []\n[tool]\npoetry = []\ntox = 1\n",
        "test_a.py": "",
    },
    {"pyproject.toml": '[tool.tox.env_run_base]\ncommands = [1, [2, {replace = 3}], "x"]\nset_env = 1\n', "test_a.py": ""},
    {"setup.cfg": "no section\n[metadata\n", "setup.py": "", "test_a.py": ""},
    {"tox.ini": "[testenv]\ndeps = {[testenv]deps}\ncommands = {[testenv]commands}\n", "test_a.py": "import unittest"},
    {"requirements.txt": "\x00\xff", "test_a.py": "import unittest"},
    {"noxfile.py": "import nox\n@nox.session\ndef tests(session:\n", "test_a.py": "import unittest"},
    {
        "noxfile.py": "@session\ndef test(s):\n    s.run(*s.run(), env=x)\n    s.install(*x[0][1], -1, '-r')\n",
        "test_a.py": "import pytest",
    },
    {"noxfile.py": "x = [*x]\n@session()\ndef test(s):\n    s.run('pytest', *x)\n", "test_a.py": "import pytest"},
]


@pytest.mark.parametrize("files", BROKEN)
def test_broken_manifests_are_not_errors(files: dict[str, str]) -> None:
    assert facts(files).tests


def test_a_broken_manifest_is_reported() -> None:
    problems = [str(problem) for problem in facts(BROKEN[0]).problems]
    assert len(problems) == 1
    assert problems[0].startswith("pyproject.toml (can't be read: ")


def test_names_that_are_no_names_never_reach_a_command() -> None:
    text = (
        '[project]\nname = "a"\n[project.optional-dependencies]\n"tests;id" = []\n"dev\\nid" = []\n[dependency-groups]\n'
        '"test$(id)" = ["x"]\n[tool.hatch.envs.test]\ndependencies = ["-rhostile", "--index-url=http://x", "a\\nb"]\n'
    )
    files = {
        "pyproject.toml": text,
        "tox.ini": "[testenv]\ndeps =\n  --index-url http://x\n  -e /etc\ncommands = x\n",
        "test_a.py": "",
    }
    found = facts(files)
    assert installs(found) == ["pip install -e ."]


@pytest.mark.slow
@pytest.mark.parametrize(
    "files",
    [
        {"tests/test_a.py": "\n" * 250_000 + "x"},
        {"tox.ini": "[testenv]\ncommands = pytest " + "{" * 50_000 + "}" * 50_000},
        {"tox.ini": "[testenv]\ncommands = " + "coverage " * 20_000},
        {"tox.ini": "[testenv]\ndeps =\n" + " {[testenv]deps}\n" * 200},
        {
            "pyproject.toml": "[dependency-groups]\n"
            + "".join(f'g{n} = [{{include-group = "g{n + 1}"}}]\n' for n in range(3000))
        },
        {"pyproject.toml": "[project]\nrequires-python = '" + ",".join([">=3.10"] * 20_000) + "'\n"},
        {"setup.py": "extras_require" + "'test'" + " " * 250_000, "requirements.txt": "psycopg2" + " " * 250_000},
        {"pyproject.toml": "x = " + "[" * 100_000},
        {"noxfile.py": "x = " + "-" * 100_000 + "1"},
        {"noxfile.py": "@session\ndef test(s):\n" + "    if x:\n        s.run('pytest', '-n', *s.posargs)\n" * 6000},
    ],
)
def test_huge_manifests_are_read_quickly(files: dict[str, str]) -> None:
    started = time.process_time()
    python.facts(project({**files, "test_b.py": "import unittest"}))
    assert time.process_time() - started < 5


def test_a_lock_file_of_uv_is_not_used_for_a_project_of_poetry() -> None:
    text = '[tool.poetry]\nname = "a"\n[tool.poetry.dependencies]\npython = "^3.9"\n'
    files = {"pyproject.toml": text, "uv.lock": "version = 1\n", "tests/test_a.py": "import pytest\n"}
    assert installs(facts({**files, "poetry.lock": ""})) == ["poetry install --no-interaction"]
    both = {**files, "pyproject.toml": f'[project]\nname = "a"\n{text}'}
    assert installs(facts(both)) == ["uv sync --locked"]


def test_distribution_packages_of_extras_that_are_not_installed_are_left_out() -> None:
    pyproject = (
        '[project]\nname = "a"\ndependencies = ["pycurl"]\n[project.optional-dependencies]\n'
        'postgres = ["psycopg2"]\ntest = ["mysqlclient"]\n'
    )
    curl, mysql = ("libcurl4-openssl-dev", "libssl-dev"), ("default-libmysqlclient-dev", "pkg-config")
    tests = {"tests/test_a.py": "import pytest\n"}
    assert facts({"pyproject.toml": pyproject, **tests}).packages == (*mysql, *curl)
    assert "libpq-dev" in facts({"pyproject.toml": pyproject, "uv.lock": "", **tests}).packages  # with all extras
    cfg = "[metadata]\nname = a\n[options]\ninstall_requires =\n  pycurl\n[options.extras_require]\npg =\n  psycopg2\n"
    assert facts({"setup.cfg": cfg, **tests}).packages == curl
    setup = "setup(\n  install_requires=['pycurl'],\n  extras_require={\n    'pg': ['psycopg2'],\n  },\n)\n"
    assert facts({"setup.py": setup, **tests}).packages == curl
    poetry = (
        '[tool.poetry]\nname = "a"\n[tool.poetry.dependencies]\npycurl = "*"\npsycopg2 = { version = "*", optional = true }\n'
    )
    assert facts({"pyproject.toml": poetry, **tests}).packages == curl


def test_packages_next_to_the_tests_are_installed_if_the_top_is_none() -> None:
    files = {
        "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n[tool.pytest]\n',
        "core/pyproject.toml": '[project]\nname = "core"\n[project.optional-dependencies]\ntest = ["mock"]\n',
        "pool/setup.py": "setup()\n",
        "docs/pyproject.toml": '[project]\nname = "docs"\n',
        "settings/pyproject.toml": "[tool.ruff]\n",
        "tests/test_a.py": "import pytest\n",
    }
    assert installs(facts(files)) == ["pip install './core[test]' ./pool pytest"]
    assert "resolve + './core[test]' + ./pool + pytest" in facts(files).steps[0].run
    own = {**files, "setup.py": "setup()\n"}
    assert installs(facts(own)) == ["pip install -e . pytest"]
    apart = {path: text for path, text in files.items() if not path.startswith("tests/")} | {
        "core/tests/test_a.py": "import pytest\n"
    }
    assert installs(facts(apart)) == ["pip install pytest"]


CONDA = """
channels: [conda-forge]
dependencies:
  - python >=3.9
  - conda-forge::numpy=1.26
  - pandas ==2.1.0
  - scipy =1.11.1=py311_0
  - xarray>=2023.1, <2025
  - pytorch
  - libnetcdf
  - compilers
  - bad name here
  - pip:
      - httpx >=0.27  # for the client
      - -r more.txt
      - git+https://example.org/x
"""


def test_an_environment_file_of_conda_is_the_last_resort() -> None:
    files = {"environment.yml": CONDA, "pyproject.toml": '[project]\nname = "a"\n', "tests/test_a.py": "import pytest\n"}
    found = facts(files, "more.txt")
    assert installs(found) == [
        "pip install -e . 'numpy==1.26.*' pandas==2.1.0 scipy==1.11.1 'xarray>=2023.1,<2025' torch 'httpx >=0.27' -r more.txt "
        "git+https://example.org/x pytest"
    ]
    assert "environment.yml:5 (a package of conda, from PyPI if that has it)" in str(found.steps[0].evidence)
    assert "environment.yml" in found.steps[0].inputs
    for several in ("ci/environment-3.12.yaml", "ci/environment-docs.yaml", "ci/environment-3.9.yml"):
        files[several] = "dependencies: [toolz]"
    assert "environment.yml:5 " in str(facts(files, "more.txt").steps[0].evidence)
    del files["environment.yml"]
    assert facts(files).steps[0].inputs[1:2] == ("ci/environment-3.9.yml",)
    assert installs(facts({**files, "requirements.txt": "attrs\n"})) == ["pip install -e . -r requirements.txt pytest"]
    for text in ("", "dependencies: 1", "dependencies: [[], {pip: x}, {1: 2}]", "a: [", "dependencies: [{pip: }]"):
        assert "conda" not in str(facts({**files, "environment.yml": text, "ci/environment-3.9.yml": ""}).steps)


def test_a_pipfile_without_a_lock_file_is_installed_with_pip() -> None:
    pipfile = (
        '[packages]\nattrs = "*"\nhttpx = { version = ">=0.27", extras = ["http2"] }\nlocal = { path = "." }\n"-bad" = "*"\n'
        '[dev-packages]\npytest = ">=8"\nwin = { version = "*", markers = "os_name == \'nt\'" }\n'
    )
    files = {"Pipfile": pipfile, "tests/test_a.py": "def test_a(): pass\n"}
    found = facts(files)
    assert installs(found) == ["pip install attrs 'httpx[http2]>=0.27' 'pytest>=8' 'win ; os_name == '\"'\"'nt'\"'\"''"]
    assert commands(found)[0] == "python -m pytest"
    locked = facts({**files, "Pipfile.lock": "{}"})
    assert installs(locked) == ["pipenv sync --dev"]
    assert "resolve + attrs 'httpx[http2]>=0.27' + 'pytest>=8'" in locked.steps[0].run
    assert facts({**files, "Pipfile": "[packages]\na = 1\n[dev-packages]\nb = []\n"}) is not None
