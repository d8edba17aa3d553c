"""The catalogue of a repository's workflows: its own and the operator's.

A repository's workflow replaces an operator's workflow with the same name or command word. That gives the repository no
additional power (its tasks run on the same machines under the same caps, which apply when machines are created), and lets it
define what `/gibil test` does. A broken file of the repository hides the operator's workflow too, so that its author sees the
problem instead of an unexpected workflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.humanize import nearest
from gibil_bot.planning.schema import is_repository_file, parse_repository_file, parse_workflow, workflow_name
from gibil_bot.planning.workflow import SHIPPED_ENGINES, Input, RepositoryFile, Workflow
from gibil_bot.planning.yaml_nodes import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All workflows of a repository, its own and the operator's, and all files that can't be used."""

    workflows: tuple[Workflow, ...] = ()
    problems: tuple[InvalidWorkflow, ...] = ()
    repository_file: RepositoryFile | None = None
    repository_problem: InvalidWorkflow | None = None
    """The problem with the `.gibil.yml`; also in `problems`."""
    broken_words: Mapping[str, InvalidWorkflow] = field(default_factory=dict)
    """Command words that a broken file would have defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandHelp:
    """One line of `/gibil help`."""

    word: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    path: str


def catalogue(
    operator: Mapping[str, bytes],
    repository: Mapping[str, bytes],
    *,
    base_ref: str,
    engines: tuple[str, ...] = SHIPPED_ENGINES,
) -> Catalogue:
    """Return all workflows that can be requested.

    `operator`: file name → content; `repository`: path → content at the base branch; `engines`: those that agents may name.
    Never raises: an unusable file becomes a problem in the catalogue and doesn't affect other files.
    """
    problems: list[InvalidWorkflow] = []
    broken: dict[str, InvalidWorkflow] = {}
    own_file, own_problem = None, None
    own: list[Workflow] = []
    for path, data in sorted(repository.items()):
        path_at_base = f"{path}@{base_ref}"
        if is_repository_file(path):
            try:
                own_file = _cached_repository_file(path_at_base, data)
            except InvalidWorkflow as problem:
                own_problem = problem
                problems += problem.all
        else:
            own += _read(path_at_base, data, engines, problems, broken)
    names = {workflow.name for workflow in own} | {workflow_name(problem.path) for problem in broken.values()}
    words = {workflow.command for workflow in own if workflow.command} | set(broken)
    from_operator: list[Workflow] = []
    for name, data in sorted(operator.items()):
        if name.endswith((".yml", ".yaml")):
            from_operator += _read(f"workflows/{name}", data, engines, problems, broken)
    not_replaced = [workflow for workflow in from_operator if workflow.name not in names and workflow.command not in words]
    return Catalogue(
        workflows=(*own, *not_replaced),
        problems=tuple(problems),
        repository_file=own_file,
        repository_problem=own_problem,
        broken_words=broken,
    )


def commands(catalogue: Catalogue) -> tuple[CommandHelp, ...]:
    """Return what `/gibil help` lists, sorted by word."""
    return tuple(
        CommandHelp(
            word=workflow.command,
            title=workflow.title,
            description=workflow.description,
            inputs=workflow.inputs,
            path=workflow.path,
        )
        for workflow in sorted(catalogue.workflows, key=lambda workflow: (workflow.command or "", workflow.name))
        if workflow.command
    )


def check_files(files: Mapping[str, bytes], engines: tuple[str, ...] = SHIPPED_ENGINES) -> tuple[InvalidWorkflow, ...]:
    """Return every problem of every file, for `gibil check`. `files`: path → content."""
    problems: list[InvalidWorkflow] = []
    for path, data in files.items():
        try:
            if is_repository_file(path):
                parse_repository_file(path, data)
            else:
                parse_workflow(path, data, engines)
        except InvalidWorkflow as problem:
            problems += problem.all
    return tuple(problems)


def why_unknown(catalogue: Catalogue, word: str) -> str:
    """Return the reply to an unknown command word: the problem of the broken file that defines it, or the known words."""
    if word in catalogue.broken_words:
        return f"`/gibil {word}` can't be used: {catalogue.broken_words[word]}"
    words = sorted({workflow.command for workflow in catalogue.workflows if workflow.command})
    listed = ", ".join(f"`{known_word}`" for known_word in words)
    alternatives = (
        f"There are {listed}, `retest`, `cancel`, and `help`."
        if words
        else "This repository has no commands yet; see `/gibil help`."
    )
    return f"`/gibil {word[:50]}` is unknown{nearest(word, [*words, 'help', 'cancel', 'retest', 'approve'])}. {alternatives}"


# --- reading files -----------------------------------------------------------------------------------------------

# The same few files are parsed for every delivery. Parsed files are immutable, so they can be cached by content.
_cached_workflow = lru_cache(maxsize=128)(parse_workflow)
_cached_repository_file = lru_cache(maxsize=128)(parse_repository_file)


def _read(
    path: str, data: bytes, engines: tuple[str, ...], problems: list[InvalidWorkflow], broken: dict[str, InvalidWorkflow]
) -> Iterable[Workflow]:
    try:
        return (_cached_workflow(path, data, engines),)
    except InvalidWorkflow as problem:
        problems += problem.all
        broken.setdefault(_word_of(path, data), problem)
        return ()


def _word_of(path: str, data: bytes) -> str:
    """Return the command of a broken workflow: its `on.command` if that can be read, else its name."""
    try:
        on = read_yaml(path, data).at("on")
    except InvalidWorkflow:
        return workflow_name(path)
    return next((value.text for key, value in on.entries if key.text == "command" and value.text), workflow_name(path))
