"""Reads conda's environment files, as the last resort: the requirements of pip in them, and the names that PyPI may have.

Machines have no conda. The format: https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html
"""

from __future__ import annotations

import re

import yaml

from gibil_bot.detection import ci_files
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import Part, requirements

_FOLDERS = (
    "",
    "conda/",
    "ci/",
    "ci/requirements/",
    "continuous_integration/",
    "requirements/",
    ".github/",
    "devtools/conda-envs/",
)
WANTED = tuple(
    f"{folder}{name}.{ending}"
    for folder in _FOLDERS
    for name in ("environment", "environment?*", "*?environment" if folder in ("", "conda/") else "test?env*")
    for ending in ("yml", "yaml")
)
_OTHER_PURPOSE = re.compile(r"doc|min|upstream|nightly|win|mac|osx|gpu|cuda|bench|lint|release|build", re.IGNORECASE)
_MOST = 100
_SPEC = re.compile(r"(?:[\w.-]+::)?([A-Za-z0-9][A-Za-z0-9._-]{0,98})\s*((?:[=<>!~][^\s]*(?:\s*,\s*)?)*)(?:\s+[\w*.]+)?")
_VERSION = re.compile(r"=\s*([0-9][0-9A-Za-z.]*)(?:=.*)?")
_RANGE = re.compile(r"(?:(?:==|>=|<=|!=|~=|<|>)[0-9][0-9A-Za-z.]*(?:\.\*)?,?)+")
_NO_PYTHON = re.compile(
    r"python|pip|conda.*|mamba|pypy.*|.*compilers?|(gcc|gxx|gfortran|clang|clangxx|llvm)([-_].*)?|make|automake|autoconf|libtool|git"
    r"|nodejs|openjdk|maven|go|rust|r-.*|lib.*|_.*|openssl|zlib|blas|nomkl|curl|hdf5|netcdf4-c|pandoc|graphviz|gdal|geos|proj|eigen|boost.*"
)
_OTHER_NAMES = {
    # conda-forge's name → PyPI's
    "dask-core": "dask",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "py-opencv": "opencv-python-headless",
    "opencv": "opencv-python-headless",
    "pytables": "tables",
    "python-build": "build",
    "python-graphviz": "graphviz",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
}


def parts(project: Project) -> list[Part]:
    """Return what the first environment file names; nothing if there is none."""
    # The last of several is for the newest Python; a name without any addition is for everything.
    paths = [path for pattern in WANTED for path in reversed(project.matching(pattern))]
    path = next(
        (path for path in paths if not _OTHER_PURPOSE.search(path.rpartition("/")[2].removeprefix("environment"))), None
    )
    if path is None:
        return []
    node = ci_files.get(project.nodes(path), "dependencies")
    found: list[Part] = []
    for each in node.value[:_MOST] if isinstance(node, yaml.SequenceNode) else ():
        line = each.start_mark.line + 1
        if isinstance(each, yaml.ScalarNode):
            if text := _from_conda(each.value):
                found.append(Part((text,), Evidence(path=path, line=line, text="a package of conda, from PyPI if that has it")))
            continue
        for text, place in ci_files.values(ci_files.get(each, "pip"))[:_MOST]:
            if text.startswith("-r ") and project.has(text[3:].strip()):
                found.append(Part(("-r", text[3:].strip()), Evidence(path=path, line=place)))
            found += [Part((text,), Evidence(path=path, line=place)) for text in requirements([text])]
    return found


def _from_conda(text: str) -> str:
    """Return a package of conda as a requirement of pip; empty if it can't be one."""
    found = _SPEC.fullmatch(text.strip())
    if found is None or _NO_PYTHON.fullmatch(found[1].lower()):
        return ""
    name, version = _OTHER_NAMES.get(found[1].lower(), found[1]), found[2].replace(" ", "")
    if exact := _VERSION.fullmatch(version):
        return f"{name}=={exact[1]}" + ("" if version.count("=") > 1 else ".*")
    return f"{name}{version}" if _RANGE.fullmatch(version) else name
