"""Python: which version, how dependencies are installed (from every manifest that exists), which command tests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gibil_bot.detection import ci_files, conda, hatch, nox, python_ci, python_requirements, tox
from gibil_bot.detection.environments import EnvironmentFacts
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import Part, normalized, requirements, string, table
from gibil_bot.detection.python_versions import choose, pinned, satisfied_by
from gibil_bot.scripts.templates import text

_VERSION_FILES = (".python-version", ".python-version-default", "runtime.txt", ".tool-versions", "mise.toml", ".mise.toml")
_SOURCES = (
    *(
        "conftest.py",
        "tests/conftest.py",
        "test/conftest.py",
        "test_*.py",
        "tests/test*.py",
        "test/test*.py",
        "tests/*/test*.py",
    ),
    *("testing/*.py", "*/tests/test*.py", "src/*/tests/test*.py", "test/*/test*.py"),
)
_NO_PACKAGES = ("test", "doc", "example", "bench", "tool", "script", "ci", "vendor", "third_party", ".", "-")
_MOST_PACKAGES = 8
VENV = "/root/.gibil/venv"
"""The virtual environment of Python projects, outside the checkout and on PATH before anything else runs."""

WANTED = (
    *(
        "pyproject.toml",
        "setup.cfg",
        "setup.py",
        "tox.ini",
        "tox.toml",
        "pytest.ini",
        ".pytest.ini",
        "pytest.toml",
        "noxfile.py",
    ),
    *_VERSION_FILES,
    *hatch.WANTED,
    *ci_files.WORKFLOWS,
    *("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "Pipfile"),
    *python_requirements.REQUIREMENTS,
    *conda.WANTED,
    *("manage.py", "runtests.py", "tests/runtests.py"),
    *_SOURCES,
)

_MANIFESTS = (
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
    "tox.ini",
    "tox.toml",
    "pytest.ini",
    "noxfile.py",
    "Pipfile",
    "manage.py",
)
_IMPORTS_PYTEST = re.compile(r"^[ \t]*(import pytest\b|from pytest\b)", re.MULTILINE)
_TEST_CODE = re.compile(r"^[ \t]*(import|from) (unittest|pytest)\b|^[ \t]*def test_", re.MULTILINE)
_TEST_FILE = re.compile(r"(^|/)(test[^/]*|[^/]+_test|tests_[^/]*)\.py$")
_PACKAGES = {
    # Python packages that are compiled from source against a C library: Debian's packages with its headers
    "psycopg2": ("libpq-dev",),
    "mysqlclient": ("default-libmysqlclient-dev", "pkg-config"),
    "python-ldap": ("libldap2-dev", "libsasl2-dev"),
    "pygraphviz": ("graphviz", "libgraphviz-dev"),
    "pycurl": ("libcurl4-openssl-dev", "libssl-dev"),
    "pyodbc": ("unixodbc-dev",),
    "xmlsec": ("libxmlsec1-dev", "pkg-config"),
    "pycairo": ("libcairo2-dev", "pkg-config"),
    "dbus-python": ("libdbus-1-dev", "libglib2.0-dev", "pkg-config"),
}
_UV_SHORT = """export UV_PROJECT_ENVIRONMENT="$VIRTUAL_ENV"
echo "UV_PROJECT_ENVIRONMENT=$VIRTUAL_ENV" >>"$GITHUB_ENV"
pip install uv
"""
"""What a `.gibil.yml` needs before `uv sync`."""
_EXTRAS_REQUIRE = re.compile(r"\bextras_require\s*=\s*\{[^{}]*\}")
_FROM_REPOSITORY = re.compile(r"^source = \{ git = ", re.MULTILINE)
_SOURCE = re.compile(r"""["']([A-Za-z0-9_./-]{1,150}\.(?:c|cc|cpp|cxx))["']""")
_EXTENSION = re.compile(r"\bext_modules\b|\bExtension\(|\bcythonize\(|\bcffi_modules\b")


def facts(project: Project) -> Facts | None:
    """Return what the files say; None if this isn't a Python project."""
    sources = _test_files(project)
    manifests = project.present((*_MANIFESTS, *python_requirements.REQUIREMENTS, "environment.yml", "environment.yaml"))
    if not manifests and not any(path.count("/") < 2 for path in sources):
        return None
    only_tool_settings = set(manifests) <= {"setup.cfg", "tox.ini", "pyproject.toml"} and not is_installable(project)
    if only_tool_settings and not sources and not python_requirements.groups(project):
        return None  # a project in another language that configures a formatter
    lead = Evidence(path=(manifests or sources)[0])
    if not manifests and not any(_TEST_CODE.search(project.text(path) or "") for path in sources):
        return None  # scripts
    pytest = _pytest(project)
    readers = (tox.read, hatch.read, nox.read, python_ci.read)
    environments = [found for read in readers if (found := read(project)) is not None]
    tests = list(_tests(project, environments, pytest, sources))
    manager, steps, env = _install(project, environments, pytest, lead)
    steps = [*_generated_sources(project), *steps]
    first = steps[0].evidence if steps else lead
    runtimes = [
        _version(project, lead),
        Runtime(name="uv", optional=True, evidence=replace(first, text="")),
    ]
    if manager in ("poetry", "pdm", "pipenv"):
        runtimes.append(Runtime(name=manager, optional=True, evidence=first))
    return Facts(
        ecosystem="Python",
        runtimes=tuple(runtimes),
        steps=tuple(steps),
        tests=tuple(tests if manifests else [replace(each, rank=each.rank + 30) for each in tests]),
        packages=_packages(project, None if manager == "uv" else _chosen_extras(steps)),
        env={name: value for found in environments for name, value in found.variables.items()} | env,
        caches=("~/.cache/uv", "~/.cache/pip"),
        problems=tuple(project.problems[path] for path in manifests if path in project.problems),
    )


def _test_files(project: Project) -> list[str]:
    """Return the paths of test files, those near the top first."""
    found = [path for path in project.paths if _TEST_FILE.search(path) and path.count("/") < 6]
    return sorted(found, key=lambda path: (path.count("/"), path))


def is_installable(project: Project) -> bool:
    """Return whether `pip install .` would find something to install."""
    pyproject = project.toml("pyproject.toml")
    if "project" in pyproject or project.has("setup.py") or "poetry" in table(pyproject, "tool"):
        return True
    # setuptools, which also is the default, would have nothing but the folders' names to go by.
    backend = string(table(pyproject, "build-system").get("build-backend"))
    if backend and not backend.startswith("setuptools."):
        return True
    return "metadata" in python_requirements.ini(project, "setup.cfg")


# which version ---------------------------------------------------------------------------------------------------------


def _version(project: Project, lead: Evidence) -> Runtime:
    wanted, source = _range(project)
    for version, evidence in _pinned_versions(project):
        if not wanted or satisfied_by(wanted, version) is not False:
            # Without that version, one in the range does as well.
            return Runtime(name="python", version=version, optional=True, evidence=evidence)
    version, accepts = choose(wanted)
    return Runtime(name="python", version=version, accepts=accepts, evidence=source or lead)


def _pinned_versions(project: Project) -> Iterator[tuple[str, Evidence]]:
    for path in (".python-version", ".python-version-default", "runtime.txt"):
        for number, line in project.lines(path):
            if line.strip() and not line.startswith("#"):
                if version := pinned(line):
                    yield version, Evidence(path=path, line=number, text=line.strip()[:50])
                break
    for number, line in project.lines(".tool-versions"):
        words = line.split()
        if len(words) > 1 and words[0] == "python" and (version := pinned(words[1])):
            yield version, Evidence(path=".tool-versions", line=number, text=f"python {words[1][:50]}")
    for path in ("mise.toml", ".mise.toml"):
        value = table(project.toml(path), "tools").get("python")
        value = value[0] if isinstance(value, list) and value else value
        value = value.get("version") if isinstance(value, dict) else value
        if version := pinned(string(value)):
            yield version, project.evidence(path, "python", f"python {string(value)[:50]}")


def _range(project: Project) -> tuple[str, Evidence | None]:
    """Return the range of versions, and where it is; empty if no file has one."""
    pyproject = project.toml("pyproject.toml")
    wanted = string(table(pyproject, "project").get("requires-python"))
    if wanted:
        return wanted, project.evidence("pyproject.toml", "requires-python", f"requires-python {wanted[:50]}")
    value = table(pyproject, "tool", "poetry", "dependencies").get("python")
    if wanted := string(value):
        return wanted, project.evidence("pyproject.toml", "python = ", f"python {wanted[:50]}")
    if wanted := python_requirements.ini(project, "setup.cfg").get("options", {}).get("python_requires", ""):
        return wanted, project.evidence("setup.cfg", "python_requires", f"python_requires {wanted[:50]}")
    found = re.search(r"""python_requires\s*=\s*["']([^"'\n]{1,80})["']""", project.text("setup.py") or "")
    if found:
        return found[1], project.evidence("setup.py", "python_requires", f"python_requires {found[1][:50]}")
    pipfile = string(table(project.toml("Pipfile"), "requires").get("python_version"))
    if pipfile:
        return f"=={pipfile}.*", project.evidence("Pipfile", "python_version", f"python_version {pipfile[:50]}")
    return "", None


# how dependencies are installed ----------------------------------------------------------------------------------------


def _install(
    project: Project, environments: Sequence[EnvironmentFacts], pytest: Evidence | None, lead: Evidence
) -> tuple[str, list[Step], dict[str, str]]:
    """Return the package manager's name, the steps and the environment of later tasks."""
    poetry = "poetry" in table(project.toml("pyproject.toml"), "tool")
    parts = _parts(project, environments, pytest)
    # uv can't lock a pyproject.toml that has Poetry's tables only: such a file is out of date, or of another tool.
    if project.has("uv.lock") and not (poetry and "project" not in project.toml("pyproject.toml")):
        return (
            "uv",
            [_uv_step(project, environments, pytest, parts)],
            {"UV_PROJECT_ENVIRONMENT": VENV, "UV_PYTHON": f"{VENV}/bin/python"},
        )
    if project.has("poetry.lock") or (poetry and "project" not in project.toml("pyproject.toml")):
        return "poetry", [_poetry_step(project, environments, parts, pytest)], {}
    if project.has("pdm.lock"):
        groups = {
            **python_requirements.groups(project),
            **table(project.toml("pyproject.toml"), "tool", "pdm", "dev-dependencies"),
        }
        names = [name for name in python_requirements.test_names(groups) if normalized(name) != "dev"]
        command = ["pdm", "sync", *(word for name in names for word in ("--group", name))]
        return "pdm", [_locked_step("pdm.lock", "pdm", [command], parts, pytest)], {}
    if project.has("Pipfile.lock"):
        return "pipenv", [_locked_step("Pipfile.lock", "pipenv", [["pipenv", "sync", "--dev"]], parts, pytest)], {}
    if not parts:
        return "", [], {}
    return "", [_resolution_step(parts, pytest)], {}


def _generated_sources(project: Project) -> Iterator[Step]:
    """Yield the step that translates Cython to the C that setup.py compiles, if the repository doesn't have the latter."""
    setup = project.text("setup.py") or ""
    missing = [
        (path, module)
        for path in dict.fromkeys(_SOURCE.findall(setup))
        if path not in project.paths and (module := f"{path.rpartition('.')[0]}.pyx") in project.paths
    ][:_MOST_PACKAGES]
    if not missing or "cythonize" in setup:
        return
    wanted = next((each for each in _cython_requirements(project)), "cython")
    commands = [["cython", *(["--cplus"] if not path.endswith(".c") else []), module] for path, module in missing]
    run = "\n".join((f"pip_install {shlex.quote(wanted)}", *(shlex.join(command) for command in commands)))
    shown = " && ".join(shlex.join(command) for command in commands)
    yield Step(
        run=f"{text('detect_pip')}{run}\n",
        shown=shown,
        short=f"pip install {shlex.quote(wanted)}\n{shown}",
        evidence=project.evidence("setup.py", missing[0][0], f"{missing[0][0]} isn't in the repository"),
        inputs=("setup.py", *(module for _, module in missing)),
    )


def _cython_requirements(project: Project) -> Iterator[str]:
    """Yield the requirements of Cython, the most exact first."""
    lines = [line for path in project.present(python_requirements.REQUIREMENTS) for _, line in project.lines(path)]
    all_groups = python_requirements.groups(project)
    lines += [each for name in all_groups for each in python_requirements.group_requirements(all_groups, name)]
    found = [each for each in requirements(lines) if re.match(r"cython\b(?!-)", each, re.IGNORECASE)]
    yield from sorted(found, key=lambda each: "==" not in each)


def _uv_step(project: Project, environments: Sequence[EnvironmentFacts], pytest: Evidence | None, parts: list[Part]) -> Step:
    all_groups = python_requirements.groups(project)
    names = python_requirements.test_names(all_groups)
    names += [name for name in _groups(environments) if name in all_groups and name not in names]
    groups = [word for name in names for word in ("--group", name)]
    extras = ["--all-extras"] if python_requirements.extras(project) else []
    given = {option for environment in environments for option in environment.options}
    if "workspace" in table(project.toml("pyproject.toml"), "tool", "uv"):
        given.add("--all-packages")
    options = sorted(given & ({"--all-packages", "--no-default-groups"} if names else {"--all-packages"}))
    shown = ["uv", "sync", "--locked", *options, *extras, *groups]
    # --inexact keeps pip, which the environment begins with.
    attempts = [["uv", "sync", mode, "--inexact", *options, *extras, *groups] for mode in ("--locked", "--frozen")]
    lock = project.text("uv.lock")
    if lock is None or _FROM_REPOSITORY.search(lock):
        # A development tool from a repository that can't be reached shouldn't prevent the tests.
        for chosen in dict.fromkeys((tuple(options), tuple(each for each in options if each != "--all-packages"))):
            attempts.append(["sync_without_repositories", *chosen, *extras, *groups])
    if extras:
        attempts.append(["uv", "sync", "--frozen", "--inexact", *options, *groups])
    reason = "uv can't use this lock file; installing what the manifests name with pip"
    fallback = _resolve(parts)
    run = f"{text('detect_pip')}if need_uv && {_first(attempts)}; then :\n"
    run += f"else\nsay {shlex.quote(reason)}\nunset UV_PROJECT_ENVIRONMENT\n{fallback}\nfi\n{_ensure(pytest)}"
    inputs = tuple(project.present(("uv.lock", "pyproject.toml")))
    evidence = Evidence(path="uv.lock", text="" if not names else f"groups {', '.join(names)}")
    return Step(run=run, shown=shlex.join(shown), short=f"{_UV_SHORT}{shlex.join(shown)}", evidence=evidence, inputs=inputs)


def _poetry_step(
    project: Project, environments: Sequence[EnvironmentFacts], parts: list[Part], pytest: Evidence | None
) -> Step:
    lock = project.has("poetry.lock")
    all_extras = python_requirements.extras(project)
    extras = python_requirements.test_names(all_extras)
    extras += [name for each in environments for name in each.extras if name in all_extras and name not in extras]
    optional = python_requirements.optional_poetry_groups(project)
    groups = [name for name in optional if name in (*python_requirements.TEST_NAMES, *_groups(environments))]
    command = ["poetry", "install", "--no-interaction", *(word for name in extras for word in ("--extras", name))]
    command += [word for name in groups for word in ("--with", name)]
    required = [part for _, part in python_requirements.poetry_requirements(project, groups)]
    if any(word.startswith("pytest") for part in required for word in part.words):
        parts = [part for part in parts if part.words != ("pytest",)]
    return _locked_step("poetry.lock" if lock else "pyproject.toml", "poetry", [command], [*parts, *required], pytest)


def _locked_step(path: str, manager: str, commands: list[list[str]], parts: list[Part], pytest: Evidence | None) -> Step:
    """Return a step that uses the lock file's own manager, or else installs the same requirements with pip."""
    shown = shlex.join(commands[0])
    fallback = _resolve(parts)
    lines = [text("detect_pip")]
    lines.append(f"if command -v {manager} >/dev/null 2>&1 && {_first(commands)}; then :\n")
    if fallback:
        reason = f"{manager} can't install this; installing what the manifests name with pip"
        versions = f"versions_of {path}\n" if path in ("poetry.lock", "pdm.lock") else ""
        lines.append(f"else\nsay {shlex.quote(reason)}\n{versions}{fallback}\nfi\n")
    else:
        lines.append(f"else fail {shlex.quote(f'{manager} is needed for {path}, and can’t install it here')}; fi\n")
    lines.append(_ensure(pytest))
    inputs = tuple(dict.fromkeys((path, *_inputs(parts))))
    short = f"pip install {manager}\n{shown}"
    return Step(run="".join(lines), shown=shown, short=short, evidence=Evidence(path=path), inputs=inputs)


def _resolution_step(parts: list[Part], pytest: Evidence | None) -> Step:
    words = [word for part in parts for word in part.words]
    shown = f"pip install {shlex.join(words)}"
    run = f"{text('detect_pip')}{_resolve(parts)}\n{_ensure(pytest)}"
    needs_new = "--group" in words
    short = f"pip install --upgrade pip\n{shown}" if needs_new else shown
    evidence = parts[0].evidence
    places = dict.fromkeys(str(part.evidence) for part in parts[1:])
    if places:
        evidence = Evidence(path=evidence.path, line=evidence.line, text=_joined(evidence.text, *list(places)[:6]))
    return Step(run=run, shown=shown, short=short, evidence=evidence, inputs=_inputs(parts))


def _joined(*texts: str) -> str:
    return "; ".join(filter(None, texts))


def _inputs(parts: list[Part]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys([part.evidence.path for part in parts] + [part.words[1] for part in parts if part.words[0] == "-r"])
    )


def _resolve(parts: list[Part]) -> str:
    if not parts:
        return ""
    words = ["resolve"]
    for part in parts:
        if not part.is_optional:
            words += part.words
    for part in parts:
        if part.is_optional:
            words += ["+", *part.words]
    return shlex.join(words)


def _first(commands: list[list[str]]) -> str:
    words = ["first"]
    for number, command in enumerate(commands):
        words += ["+", *command] if number else command
    return shlex.join(words)


def _ensure(pytest: Evidence | None) -> str:
    return f"ensure pytest pytest {shlex.quote(str(pytest))}\n" if pytest else ""


def _parts(project: Project, environments: Sequence[EnvironmentFacts], pytest: Evidence | None) -> list[Part]:
    """Return what is installed in one resolution, without a lock file."""
    path = "pyproject.toml"
    parts: list[Part] = []
    all_extras = python_requirements.extras(project)
    extras = {name: all_extras[name] for name in python_requirements.test_names(all_extras)}
    known = {normalized(name): name for name in all_extras}
    for environment in environments:
        extras |= {known[each]: environment.evidence for each in map(normalized, environment.extras) if each in known}
    installable = is_installable(project)
    if installable:
        manifest = project.first("pyproject.toml", "setup.py", "setup.cfg") or path
        if manifest == path and not {"project", "build-system"} & project.toml(path).keys():
            manifest = project.first("setup.py", "setup.cfg") or path
        needle = {"pyproject.toml": "[project]", "setup.cfg": "[metadata]"}.get(manifest, "setup(")
        evidence = project.evidence(manifest, needle)
        if extras:
            # One argument with all extras: `-e .` twice would be a conflict.
            evidence = Evidence(path=manifest, line=evidence.line, text=f"extras {', '.join(extras)}")
        parts.append(Part(("-e", f".[{','.join(extras)}]" if extras else "."), evidence, is_optional=False))
    below = [] if installable else _packages_below(project)
    parts += below
    all_groups = python_requirements.groups(project)
    names = python_requirements.test_names(all_groups)
    names += [name for name in _groups(environments) if name in all_groups and name not in names]
    for name in names:
        line = python_requirements.evidence_in(project, path, "[dependency-groups]", name).line
        evidence = Evidence(path=path, line=line, text=f"group {name}")
        members = requirements(python_requirements.group_requirements(all_groups, name))
        remote = [each for each in members if "://" in each]
        if not remote:
            parts.append(Part(("--group", name), evidence))
            continue
        # A repository that can't be reached shouldn't prevent the others.
        parts += [Part((each,), evidence) for each in remote]
        if others := tuple(each for each in members if each not in remote):
            parts.append(Part(others, evidence))
    pdm = table(project.toml(path), "tool", "pdm", "dev-dependencies")
    for name in python_requirements.test_names(pdm):
        if found := requirements(python_requirements.strings(pdm[name])):
            parts.append(Part(tuple(found), project.evidence(path, "[tool.pdm.dev-dependencies]", f"group {name}")))
    for part in python_requirements.requirement_files(project):
        required = part.words == ("-r", "requirements.txt") and not installable
        parts.append(Part(part.words, part.evidence, is_optional=not required))
    for environment in environments:
        seen = {part.words for part in parts} | {("-e", part.words[0].partition("[")[0]) for part in below}
        more = [words for words in environment.requirements if words not in seen and _exists(project, words)]
        options = [words for words in more if len(words) > 1]
        parts += [Part(words, environment.evidence) for words in options]
        packages = [words[0] for words in more if len(words) == 1]
        # A repository that can't be reached shouldn't prevent the others.
        remote = [package for package in packages if "://" in package]
        parts += [Part((package,), environment.evidence) for package in remote]
        if plain := tuple(package for package in packages if package not in remote):
            parts.append(Part(plain, environment.evidence))
    parts += python_requirements.pipfile_requirements(project)
    if all(part.words[0] == "-e" for part in parts):
        parts += conda.parts(project)
    named = " ".join(word for part in parts for word in part.words)
    if pytest and not re.search(r"(^|\s)pytest\b(?!-)", named):
        parts.append(Part(("pytest",), pytest))
    return parts


def _chosen_extras(steps: Sequence[Step]) -> list[str]:
    """Return the extras that the steps install."""
    shown = " ".join(step.shown for step in steps)
    found = [name for names in re.findall(r"'?\.\[([\w.,-]+)\]", shown) for name in names.split(",")]
    return found + re.findall(r"--extras ([\w.-]+)", shown)


def _packages_below(project: Project) -> list[Part]:
    """Return the packages in the folders next to the tests, of a project that is no package itself."""
    if not any(path.partition("/")[0] in (path, "test", "tests", "testing") for path in _test_files(project)):
        return []
    parts: list[Part] = []
    for path in (*project.matching("*/pyproject.toml"), *project.matching("*/setup.py")):
        folder = path.partition("/")[0]
        inside = project.inside(f"{folder}/")
        if folder.startswith(_NO_PACKAGES) or any(part.evidence.path.startswith(f"{folder}/") for part in parts):
            continue
        if is_installable(inside):
            extras = python_requirements.test_names(python_requirements.extras(inside))
            place = f"./{folder}[{','.join(extras)}]" if extras else f"./{folder}"
            # Not editable: next to the top folder's pytest, a folder with the package's name would hide it.
            parts.append(Part((place,), Evidence(path=path)))
    return parts[:_MOST_PACKAGES]


def _groups(environments: Sequence[EnvironmentFacts]) -> list[str]:
    return [name for environment in environments for name in environment.groups]


def _exists(project: Project, words: tuple[str, ...]) -> bool:
    return words[0] not in ("-r", "-c") or project.has(words[1])


def _packages(project: Project, extras: Sequence[str] | None) -> tuple[str, ...]:
    """Return the distribution's packages that building needs. `extras`: the ones that are installed; None: all."""
    everything = "\n".join(_requirements_of(project, extras))[:2_000_000]
    found: list[str] = []
    for name, packages in _PACKAGES.items():
        if re.search(rf"""(^|["'\s]){name}($|["'\s\[<>=!~;,])""", everything, re.IGNORECASE | re.MULTILINE):
            found += packages
    if _EXTENSION.search(project.text("setup.py") or "") or any(
        path.endswith(".pyx") and "test" not in path for path in project.paths
    ):
        found += ["gcc", "python3-dev"]
    return tuple(dict.fromkeys(found))


def _requirements_of(project: Project, extras: Sequence[str] | None) -> Iterator[str]:
    """Yield texts that name what is installed, without the extras that aren't."""

    def is_installed(name: str) -> bool:
        return extras is None or normalized(name) in map(normalized, extras)

    pyproject = project.toml("pyproject.toml")
    yield from python_requirements.strings(table(pyproject, "project").get("dependencies"))
    for name, values in table(pyproject, "project", "optional-dependencies").items():
        if is_installed(name):
            yield from python_requirements.strings(values)
    for values in python_requirements.groups(project).values():
        yield from python_requirements.strings(values)
    poetry = table(pyproject, "tool", "poetry")
    yield from (name for name, value in table(poetry, "dependencies").items() if table(value).get("optional") is not True)
    for members in (poetry.get("dev-dependencies"), *(table(each, "dependencies") for each in table(poetry, "group").values())):
        yield from table(members)
    setup = python_requirements.ini(project, "setup.cfg")
    yield from (value for name, value in setup.get("options", {}).items() if name.endswith("_requires"))
    yield from (value for name, value in setup.get("options.extras_require", {}).items() if is_installed(name))
    yield _EXTRAS_REQUIRE.sub("", project.text("setup.py") or "")
    yield from (project.text(path) or "" for path in python_requirements.REQUIREMENTS)


# which command tests ---------------------------------------------------------------------------------------------------


def _pytest(project: Project) -> Evidence | None:
    """Return why the tests need pytest; None if they don't."""
    for path in ("pytest.ini", ".pytest.ini", "pytest.toml"):
        if project.has(path):
            return Evidence(path=path)
    pyproject = table(project.toml("pyproject.toml"), "tool", "pytest")
    if pyproject or "pytest" in table(project.toml("pyproject.toml"), "tool"):
        return project.evidence("pyproject.toml", "[tool.pytest", "[tool.pytest]")
    for path, heading in (("setup.cfg", "[tool:pytest]"), ("tox.ini", "[pytest]")):
        if place := project.line_of(path, heading):
            return Evidence(path=path, line=place, text=heading)
    for path in sorted(project.files, key=lambda path: (path.count("/"), path)):
        if path.endswith(".py") and path not in ("setup.py", "noxfile.py"):
            content = project.text(path) or ""
            if found := _IMPORTS_PYTEST.search(content):
                return Evidence(path=path, line=content.count("\n", 0, found.start(1)) + 1, text=found[1])
    for path in ("conftest.py", "tests/conftest.py", "test/conftest.py"):
        if project.has(path):
            return Evidence(path=path)
    for path in ("pyproject.toml", "setup.cfg", "setup.py", "tox.ini", "Pipfile", *python_requirements.REQUIREMENTS):
        for number, line in project.lines(path):
            if re.search(r"\bpytest\b(?![-_])", line) and not line.lstrip().startswith("#"):
                return Evidence(path=path, line=number, text="pytest")
    return None


def _tests(
    project: Project, environments: Sequence[EnvironmentFacts], pytest: Evidence | None, sources: list[str]
) -> Iterator[Candidate]:
    for environment in environments:
        if environment.candidate:
            yield environment.candidate
    if project.has("runtests.py"):
        yield Candidate(run="python runtests.py", evidence=Evidence(path="runtests.py"), needs=("python",), rank=40)
    if project.has("tests/runtests.py"):
        run = 'cd tests && python runtests.py "$@"'
        yield Candidate(run=run, evidence=Evidence(path="tests/runtests.py"), needs=("python",), rank=41)
    configured = _django_settings(project)
    if project.has("manage.py") and sources and not (pytest and configured):
        yield Candidate(
            run="python manage.py test",
            evidence=Evidence(path="manage.py"),
            needs=("python",),
            check="python -c 'import django'",
            rank=44,
        )
    if not sources:
        return
    if pytest:
        check = "python -c 'import pytest'"
        yield Candidate(run="python -m pytest", evidence=pytest, needs=("python",), check=check, rank=50)
    if not pytest or not _imports_pytest(project):
        yield _unittest(project, sources)


def _django_settings(project: Project) -> bool:
    texts = (project.text(path) or "" for path in ("pytest.ini", "pyproject.toml", "setup.cfg", "tox.ini"))
    return any("DJANGO_SETTINGS_MODULE" in text for text in texts)


def _imports_pytest(project: Project) -> bool:
    return any(_IMPORTS_PYTEST.search(project.text(path) or "") for path in project.files if path.endswith(".py"))


def _unittest(project: Project, sources: list[str]) -> Candidate:
    folder = next((name for name in ("tests", "test") if any(path.startswith(f"{name}/") for path in sources)), "")
    run = "python -m unittest discover -v"
    if folder:
        run += f" -s {folder}" + (" -t ." if project.has(f"{folder}/__init__.py") else "")
    if any(path.startswith("src/") for path in project.paths) and not is_installable(project):
        run = f'PYTHONPATH="src${{PYTHONPATH:+:$PYTHONPATH}}" {run}'
    evidence = Evidence(path=next((path for path in sources if path.startswith(f"{folder}/")), sources[0]))
    return Candidate(run=run, evidence=evidence, needs=("python",), rank=60)
