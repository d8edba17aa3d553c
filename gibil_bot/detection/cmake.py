"""C and C++ that is configured before it is built: CMake, Meson and Autotools. Plain Makefiles are make.py's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Step
from gibil_bot.detection.languages import LAST_RESORT, is_only
from gibil_bot.detection.project import Project

_MESON = ("meson.build", "tests/meson.build", "test/meson.build", "src/meson.build", "unittests/meson.build")
_MESON_OPTION = re.compile(
    r"option\(\s{0,40}'(tests?|testing|unit[-_]?tests|build[-_]tests)'\s{0,40},\s{0,40}type\s{0,9}:\s{0,9}'boolean'"
    r"[^)]{0,400}value\s{0,9}:\s{0,9}false"
)
_FRAMEWORKS = {
    "Catch2": ("catch2",),
    "GTest": ("libgtest-dev", "libgmock-dev"),
    "doctest": ("doctest-dev",),
    "CppUTest": ("libcpputest-dev",),
}
WANTED = (
    *("CMakeLists.txt", "tests/CMakeLists.txt", "test/CMakeLists.txt", "configure.ac", "configure.in"),
    *_MESON,
    *("meson_options.txt", "meson.options"),
    "Makefile",
    *ci_hints.WANTED,
)

_TESTS = re.compile(r"^[ \t]{0,40}(enable_testing|add_test|include[ \t]{0,9}\([ \t]{0,9}CTest)\b", re.IGNORECASE | re.MULTILINE)
_OPTION = re.compile(
    r"^[ \t]{0,40}option[ \t]{0,9}\([ \t]{0,9}([A-Za-z]\w{0,80})\s{1,40}(?:\"[^\"\n]{0,300}\"|\S{1,80})"
    r"\s{1,40}(OFF|NO|FALSE|0)\s{0,9}\)",
    re.IGNORECASE | re.MULTILINE,
)
_TEST_OPTION = re.compile(r"(?:.*_)?(?:UNIT_?)?TEST(?:S|ING)?", re.IGNORECASE)
_NO_TEST_OPTION = re.compile(
    r"FUZZ|BENCH|PERF|INTEGRATION|COVERAGE|SANIT|INSTALL|CUDA|GPU|WASM|EXTERNAL|SYSTEM|DISABLE|NO_|WITHOUT|SKIP|EXCLUDE",
    re.IGNORECASE,
)
_BUILD_FOLDERS = ("build", "build-tests", "cmake-build-gibil")
_CI_PACKAGE = re.compile(
    r"lib[a-z0-9][a-z0-9.+-]{0,60}-dev|bison|flex|gperf|gettext|autopoint|texinfo|pkg-config|nasm|yasm|ninja-build|autoconf-archive"
)
_JOBS = '-j"$(nproc)"'


def facts(project: Project) -> Facts | None:
    tests: list[Candidate] = []
    steps: list[Step] = []
    rank = 50 if is_only(project, "CMakeLists.txt", "meson.build", "configure.ac") else LAST_RESORT
    packages: list[str] = []
    if project.has("CMakeLists.txt") and (found := _cmake(project, rank)):
        tests.append(found)
        steps.append(_configure(project, found.run.partition(" && ")[0], "CMakeLists.txt"))
        packages += ["cmake", "make", "g++"]
    if project.has("meson.build") and (declared := _meson_tests(project)):
        path, options = declared
        folder = _build_folder(project)
        setup = f"meson setup {folder}{options}"
        steps.append(_configure(project, setup, "meson.build"))
        run = f"{setup} && meson compile -C {folder} && meson test -C {folder} --print-errorlogs"
        tests.append(Candidate(run=run, evidence=project.evidence(path, "test(", options.strip()), needs=("meson",), rank=rank))
        packages += ["meson", "ninja-build", "pkg-config", "g++"]
    if found := _autotools(project, rank):
        tests.append(found)
        packages += ["autoconf", "automake", "libtool", "pkg-config", "make", "g++"]
    if not tests:
        return None
    packages += _ci_packages(project)
    packages += _frameworks(project)
    if _tested_by_make(project) and not re.search(r"\b(cmake|meson|autoreconf)\b", project.text("Makefile") or ""):
        # installing takes longer than such a project's tests, and nothing here would run
        packages = []
    if rank == LAST_RESORT or _tested_by_make(project):
        steps = []
    return Facts(ecosystem="C/C++", steps=tuple(steps[:1]), tests=tuple(tests), packages=tuple(dict.fromkeys(packages)))


def _configure(project: Project, command: str, manifest: str) -> Step:
    """Return the step that configures the build: it often downloads dependencies. Testing repeats it, to no effect."""
    names = ("CMakeLists.txt", "meson.build", "meson_options.txt", "meson.options")
    inputs = [path for path in sorted(project.paths) if path.rsplit("/", 1)[-1] in names or path.endswith((".cmake", ".wrap"))]
    return Step(run=command, evidence=Evidence(path=manifest), inputs=tuple(inputs[:100]))


def _meson_tests(project: Project) -> tuple[str, str] | None:
    """Return the file that declares Meson's tests, and the options that enable them; None if nothing declares any."""
    path = next(
        (path for path in _MESON if re.search(r"^[ \t]{0,40}test[ \t]{0,9}\(", project.text(path) or "", re.MULTILINE)), None
    )
    if path is None:
        return None
    text = "\n".join(project.text(each) or "" for each in ("meson_options.txt", "meson.options"))
    options = "".join(f" -D{name}=true" for name in _MESON_OPTION.findall(text))
    return path, options


def _frameworks(project: Project) -> Iterator[str]:
    """Yield the packages of the test frameworks that CMake looks for before it downloads them."""
    text = "\n".join(project.text(path) or "" for path in WANTED if path.endswith("CMakeLists.txt"))
    for name, packages in _FRAMEWORKS.items():
        if re.search(rf"find_package[ \t]{{0,9}}\([ \t]{{0,9}}{name}\b", text):
            yield from packages


def _cmake(project: Project, rank: int) -> Candidate | None:
    path = next((path for path in WANTED if path.endswith("CMakeLists.txt") and _TESTS.search(project.text(path) or "")), None)
    if path is None:
        return None
    folder = _build_folder(project)
    text = project.text("CMakeLists.txt") or ""
    names = (name for name, _ in _OPTION.findall(text))
    options = [name for name in names if _TEST_OPTION.fullmatch(name) and not _NO_TEST_OPTION.search(name)][:5]
    definitions = "".join(f" -D{name}=ON" for name in options)
    build = f"cmake -S . -B {folder}{definitions} && cmake --build {folder} {_JOBS}"
    run = f"{build} && ctest --test-dir {folder} --output-on-failure --no-tests=error"
    found = _TESTS.search(project.text(path) or "")
    evidence = project.evidence(path, found[1] if found else "", "".join(f"{name}=ON " for name in options).strip())
    return Candidate(run=run, evidence=evidence, needs=("cmake", "ctest"), rank=rank)


def _tested_by_make(project: Project) -> bool:
    return project.has("Makefile") and bool(
        re.search(r"^(?:test|check)[ \t]{0,9}:(?!=)", project.text("Makefile") or "", re.MULTILINE)
    )


def _build_folder(project: Project) -> str:
    """Return a name that nothing in the repository has: tests often expect the build in a folder of the checkout."""
    taken = {path.split("/")[0].casefold() for path in project.paths}
    return next((name for name in _BUILD_FOLDERS if name not in taken), "/tmp/gibil-build")  # noqa: S108 (on a machine for one run)


def _autotools(project: Project, rank: int) -> Candidate | None:
    source = project.first("configure.ac", "configure.in")
    if project.has("configure"):
        first = "sh ./configure"
        source = "configure"
    elif source is not None:
        script = project.first("autogen.sh", "bootstrap.sh", "bootstrap")
        first = f"{'NOCONFIGURE=1 sh ./' + script if script else 'autoreconf -fi'} && ./configure"
    if source is None or not (project.has("Makefile.am", "Makefile.in")):
        return None
    run = f"{first} && make {_JOBS} && make check"
    needs = ("make",) if source == "configure" else ("make", "autoreconf")
    return Candidate(run=run, evidence=Evidence(path=source), needs=needs, rank=rank)


def _ci_packages(project: Project) -> list[str]:
    """Return headers and generators that the CI installs: no manifest of C names them."""
    found: dict[str, None] = {}
    for command in ci_hints.commands(project):
        if re.search(r"\bapt(-get)?\s+(-\S+\s+)*install\b", command.run):
            found |= dict.fromkeys(word for word in command.run.split() if _CI_PACKAGE.fullmatch(word))
    return list(found)[:30]
