"""Globs, protected paths and names that file systems read as other names."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.commits.paths import (
    collisions,
    is_git_folder,
    is_git_settings,
    is_protected,
    is_selected,
    is_within_tree,
)
from gibil_bot.path_globs import Glob


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("src/**", ["src/a", "src/a/b"], ["srcx/a", "a/src/b"]),
        ("**/A.md", ["A.md", "x/y/A.md"], ["xA.md", "A.md/x"]),
        ("*.py", ["a.py"], ["d/a.py", "a.pyc"]),
        ("**.py", ["a.py", "d/a.py"], ["a.pyc"]),
        ("a/**/b", ["a/b", "a/x/y/b"], ["a/xb", "ab"]),
        ("**/x*", ["xy", "q/xy"], ["q/xy/z"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("src", ["src", "src/x"], ["srcx"]),
        ("src/", ["src/x"], ["src"]),
        ("./src/*", ["src/x"], ["src/x/y"]),
        ("**", ["x", "x/y"], []),
        ("[ab].txt", ["[ab].txt"], ["a.txt"]),
    ],
)
def test_a_glob_matches_paths_of_its_folders(pattern: str, matching: list[str], other: list[str]) -> None:
    assert [path for path in matching + other if Glob(pattern).matches(path)] == matching


@pytest.mark.parametrize(
    ("patterns", "selected", "other"),
    [
        ((), ["a", "b/c"], []),
        (("src/**", "!src/generated/**"), ["src/a"], ["src/generated/a", "b"]),
        (("!docs",), ["a", "docs2"], ["docs", "docs/a"]),
        (("!src/**", "src/a"), ["src/a"], ["src/b", "c"]),
        (("**", "!*.lock", "uv.lock"), ["a/b", "uv.lock"], ["npm.lock"]),
    ],
)
def test_paths_are_selected_in_order_and_left_out_with_an_exclamation_mark(
    patterns: tuple[str, ...], selected: list[str], other: list[str]
) -> None:
    assert [path for path in selected + other if is_selected(path, patterns)] == selected


@given(st.text("ab*?", min_size=1, max_size=8).filter(lambda text: "**" not in text), st.text("ab", max_size=8))
def test_a_glob_within_one_folder_agrees_with_fnmatch(pattern: str, name: str) -> None:
    assert Glob(pattern).matches(name) == fnmatch.fnmatchcase(name, pattern)


def test_matching_takes_linear_time() -> None:
    glob = Glob("*a" * 200 + "**b" * 30)
    began = time.process_time()
    assert not glob.matches("a" * 4000 + "c")
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/ci.yml",
        ".GITHUB/Workflows/ci.yml",
        ".github",
        ".github/workflows",
        ".gibil.yml",
        ".gibil/workflows/x.yml",
        ".gibil",
        "sub/AGENTS.md",
        "agents.md",
        "CLAUDE.md",
        "a/.Claude/settings.json",
        ".g\u200cithub/workflows/x",
        "docs/CODEOWNERS",
        ".github./workflows/x",
        ".github/copilot-instructions.md",
        ".mcp.json",
        ".circleci/config.yml",
        ".gitlab-ci.yml",
        "Jenkinsfile.release",
        ".Woodpecker/x.yaml",
        ".drone.yaml",
        ".devcontainer/devcontainer.json",
        # Links that could be in place of folders
        ".buildkite",
        ".claude",
        "a/.Claude",
        ".vscode",
        ".gibilx",
        # The same files on Windows
        ".github\\workflows\\x.yml",
        "a\\AGENTS.md",
        "AGENTS.md::$DATA",
        ".claude::$INDEX_ALLOCATION/settings.json",
        "AGENTS~1.MD",
        "a/CLAUDE~2/settings.json",
        "GITHUB~1/workflows/x.yml",
        "CODEOW~1",
        "AG12AB~1.MD",
    ],
)
def test_files_that_decide_what_runs_are_protected(path: str) -> None:
    assert is_protected(path)


@pytest.mark.parametrize(
    "path",
    [
        "src/x",
        "github/workflows/x",
        ".github/ISSUE_TEMPLATE/x.md",
        "src/Jenkinsfile",
        "docs/.travis.yml",
        "AGENTS.md.txt",
        "a",
        "x/docs",
        "notes~1.md",
        "a:b/c",
        "ag~1",
    ],
)
def test_other_files_are_not_protected(path: str) -> None:
    assert not is_protected(path)


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        ".git/x",
        "a/.GIT",
        "a/git~1/x",
        ".g\u200cit/config",
        ".g\u00adit/config",
        ".git ./x",
        ".git::$INDEX_ALLOCATION/x",
        "a\\.git\\x",
        "a/../b",
        "a//b",
    ],
)
def test_names_that_some_file_system_reads_as_git_are_found(path: str) -> None:
    assert is_git_folder(path)


def test_ordinary_names_with_git_in_them_are_allowed() -> None:
    assert not any(map(is_git_folder, [".gitignore", "a/.github/x", "git/x", "x.git/y", ".gitkeep"]))
    assert all(map(is_git_settings, ["GITMOD~1", "gi7eba~2", "GI7D29~1", "a\\gitatt~1", "lfscon~1", ".gitmodules::$DATA"]))
    assert [path for path in ("a/.gitAttributes", ".gitmodules", ".lfsconfig", ".gitignore") if is_git_settings(path)] == [
        "a/.gitAttributes", ".gitmodules", ".lfsconfig",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "target"), [("a/b", "../c"), ("x", "a/b"), ("a/b", ".."), ("a/b/c", "../../x/y"), ("x", "./y")]
)
def test_links_to_paths_in_the_repository_are_allowed(path: str, target: str) -> None:
    assert is_within_tree(path, target)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("b", "../c"),
        ("b", "/etc/passwd"),
        ("b", ""),
        ("b", ".git/config"),
        ("a/b", "../.GIT/hooks"),
        ("b", "C:\\x"),
        ("b", "..\\x"),
        ("a/b/c", "link/../../../etc"),
    ],
)
def test_links_out_of_the_repository_are_found(path: str, target: str) -> None:
    assert not is_within_tree(path, target)


def test_names_that_differ_only_by_case_or_normalization_collide() -> None:
    assert collisions(["README", "Readme", "x", "caf\u00e9", "cafe\u0301", "stra\u00dfe", "STRASSE"]) == [
        ("README", "Readme"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE"),
    ]  # fmt: skip
