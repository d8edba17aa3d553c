"""Rules for paths that come from a machine: protected paths, names that mean `.git`, targets of symbolic links. Pure.

git checks the names that it knows (https://git-scm.com/docs/git-fsck#_fsck_messages); the rules here also cover the paths that
we protect, in all spellings that are the same path to some file system.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from gibil_bot.instruction_files import INSTRUCTION_FILES
from gibil_bot.path_globs import fold, globs, is_same_file

PROTECTED: tuple[str, ...] = (
    # They decide what runs with the repository's secrets, on GitHub's machines or on gibil's.
    ".github/workflows/**", ".github/actions/**", ".gibil*", ".gibil*/**",
    # So do these, at other services that start for a pushed branch, by the names in their documentation.
    ".circleci/**", ".gitlab-ci.yml", ".travis.yml", "azure-pipelines*.yml", ".azure-pipelines/**", "Jenkinsfile*",
    ".buildkite/**", ".drone.y*ml", ".woodpecker*", ".woodpecker/**", ".appveyor.yml", "appveyor.yml",
    "bitbucket-pipelines.yml", ".semaphore/**", ".cirrus.*", ".teamcity/**", "cloudbuild.y*ml", "buildspec.y*ml",
    ".devcontainer/**", ".devcontainer.json",
    # https://docs.github.com/en/repositories/managing-your-repositorys-settings-and-features/customizing-your-repository/about-code-owners
    "CODEOWNERS", ".github/CODEOWNERS", "docs/CODEOWNERS",
    *INSTRUCTION_FILES,
)  # fmt: skip
"""Paths that commits from a machine can't change: globs, with `**/` for any folder or none."""

# https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# NTFS: a short name, an alternate stream, trailing dots and blanks: git's is_ntfs_dotgit,
# https://github.com/git/git/blob/master/path.c
_GIT_FOLDER = re.compile(r"(?:\.git|git~[0-9]+)[. ]*(?::.*)?", re.DOTALL)
_SETTINGS_OF_GIT = re.compile(
    r"(?:\.gitmodules|\.gitattributes|\.lfsconfig|(?:gitmod|gi7eba|gitatt|gi7d29|lfscon)~[0-9]+)[. ]*(?::.*)?", re.DOTALL
)


def is_selected(path: str, patterns: Sequence[str]) -> bool:
    """Return whether the patterns select the path: globs in order, of which those with `!` in front leave out.

    The last one that matches decides. Without any pattern, or with only `!`, whatever isn't left out is selected.
    """
    selected = all(pattern.startswith("!") for pattern in patterns)
    compiled = globs(tuple(pattern.removeprefix("!") for pattern in patterns))
    for pattern, glob in zip(patterns, compiled, strict=True):
        if glob.matches(path):
            selected = not pattern.startswith("!")
    return selected


def is_protected(path: str, patterns: Sequence[str] = PROTECTED) -> bool:
    """Return whether a path is protected, in any spelling; so is a link or a file in place of a protected folder."""
    return _is_protected(path, tuple(patterns))


@functools.lru_cache(maxsize=4096)
def _is_protected(path: str, patterns: tuple[str, ...]) -> bool:
    return is_same_file(path, patterns)  # each commit of a list may change the same files


def is_git_folder(path: str) -> bool:
    """Return whether a component of the path is `.git`, `.` or `..` to git or to some file system."""
    return any(part in ("", ".", "..") or _GIT_FOLDER.fullmatch(part) is not None for part in _parts(path))


def is_git_settings(path: str) -> bool:
    """Return whether the file's name is that of git's own settings in a checkout: they name URLs, and programs to run."""
    return _SETTINGS_OF_GIT.fullmatch(_parts(path)[-1]) is not None


def parents_of(path: str) -> Iterator[str]:
    """Yield the folders that a path is in."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def has_control_characters(path: str) -> bool:
    """Return whether the path has characters that change how a terminal or a web page shows it."""
    return any(unicodedata.category(sign) in ("Cc", "Cs") for sign in path) or _DIRECTION.search(path) is not None


def is_within_tree(path: str, target: str) -> bool:
    """Return whether the target of a symbolic link at `path` is in the repository, and not in `.git`.

    `..` is allowed only at the beginning: after a folder's name it could leave the folder that another link points to.
    """
    if not target or target.startswith(("/", "\\", "~")) or "\0" in target or re.match("[A-Za-z]:", target):
        return False
    parts = [part for part in target.replace("\\", "/").split("/") if part not in ("", ".")]
    upwards = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    names = parts[upwards:]
    return upwards <= path.count("/") and ".." not in names and not (names and is_git_folder("/".join(names)))


def collisions(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the names of one folder that are the same name to some file system, as groups."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(fold(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _parts(path: str) -> list[str]:
    """Return the components, also those that Windows separates by a backslash: folded, with trailing dots and blanks, and
    without any invisible character.
    """
    if not path.isascii():
        path = "".join(sign for sign in path if unicodedata.category(sign) != "Cf")
    folded = unicodedata.normalize("NFC", path).casefold()
    return folded.replace("\\", "/").split("/")
