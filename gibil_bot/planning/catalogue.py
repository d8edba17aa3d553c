"""All the workflows that a repository has: its own, and the operator's.

A repository's workflow takes the place of an operator's that has the same name or the same command word. That gives a
repository no power it lacks otherwise (its tasks run on the same machines under the same caps, which are applied where
machines are forged), and lets it say how `/gibil test` is meant. A repository's broken file hides the operator's too:
whoever wrote it should hear about it instead of getting something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.humanize import nearest
from gibil_bot.planning.schema import is_repository_file, parse_repository_file, parse_workflow, workflow_name
from gibil_bot.planning.workflow import Input, RepositoryFile, Workflow
from gibil_bot.planning.yaml_nodes import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Every workflow that a repository has, its own and the operator's, and every file that cannot be used."""

    workflows: tuple[Workflow, ...] = ()
    problems: tuple[InvalidWorkflow, ...] = ()
    repository_file: RepositoryFile | None = None
    repository_problem: InvalidWorkflow | None = None
    """What is wrong with the `.gibil.yml`; it is among `problems` too."""
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


def catalogue(operator: Mapping[str, bytes], repository: Mapping[str, bytes], *, base_ref: str) -> Catalogue:
    """All that can be asked for. `operator`: file name → content; `repository`: path → content at the base branch.

    Never raises: a file that cannot be used is a problem in the answer, and hides no other.
    """
    problems: list[InvalidWorkflow] = []
    broken: dict[str, InvalidWorkflow] = {}
    own_file, own_problem = None, None
    own: list[Workflow] = []
    for path, data in sorted(repository.items()):
        place = f"{path}@{base_ref}"
        if is_repository_file(path):
            try:
                own_file = _cached_repository_file(place, data)
            except InvalidWorkflow as problem:
                own_problem = problem
                problems += problem.all
        else:
            own += _read(place, data, problems, broken)
    names = {workflow.name for workflow in own} | {workflow_name(problem.path) for problem in broken.values()}
    words = {workflow.command for workflow in own if workflow.command} | set(broken)
    theirs: list[Workflow] = []
    for name, data in sorted(operator.items()):
        if name.endswith((".yml", ".yaml")):
            theirs += _read(f"workflows/{name}", data, problems, broken)
    kept = [workflow for workflow in theirs if workflow.name not in names and workflow.command not in words]
    return Catalogue(
        workflows=(*own, *kept),
        problems=tuple(problems),
        repository_file=own_file,
        repository_problem=own_problem,
        broken_words=broken,
    )


def commands(known: Catalogue) -> tuple[CommandHelp, ...]:
    """What `/gibil help` lists, by word."""
    return tuple(
        CommandHelp(
            word=workflow.command,
            title=workflow.title,
            description=workflow.description,
            inputs=workflow.inputs,
            path=workflow.path,
        )
        for workflow in sorted(known.workflows, key=lambda workflow: (workflow.command or "", workflow.name))
        if workflow.command
    )


def check_files(files: Mapping[str, bytes]) -> tuple[InvalidWorkflow, ...]:
    """What `gibil check` reports: every problem of every file, path → content in."""
    problems: list[InvalidWorkflow] = []
    for path, data in files.items():
        try:
            if is_repository_file(path):
                parse_repository_file(path, data)
            else:
                parse_workflow(path, data)
        except InvalidWorkflow as problem:
            problems += problem.all
    return tuple(problems)


def why_unknown(known: Catalogue, word: str) -> str:
    """What to tell a person whose command word no workflow has: the problem of the file that should, or what there is."""
    if word in known.broken_words:
        return f"`/gibil {word}` cannot be used: {known.broken_words[word]}"
    words = sorted({workflow.command for workflow in known.workflows if workflow.command})
    listed = ", ".join(f"`{known_word}`" for known_word in words)
    there_are = (
        f"There are {listed}, `retest`, `cancel`, and `help`."
        if words
        else "This repository has no commands yet; `/gibil help` says more."
    )
    return f"`/gibil {word[:50]}` is unknown{nearest(word, [*words, 'help', 'cancel', 'retest', 'approve'])}. {there_are}"


# --- reading files -----------------------------------------------------------------------------------------------

# The same few files are read for every delivery; a frozen value of the same bytes is the same value.
_cached_workflow = lru_cache(maxsize=128)(parse_workflow)
_cached_repository_file = lru_cache(maxsize=128)(parse_repository_file)


def _read(path: str, data: bytes, problems: list[InvalidWorkflow], broken: dict[str, InvalidWorkflow]) -> Iterable[Workflow]:
    try:
        return (_cached_workflow(path, data),)
    except InvalidWorkflow as problem:
        problems += problem.all
        broken.setdefault(_word_of(path, data), problem)
        return ()


def _word_of(path: str, data: bytes) -> str:
    """The command that a broken workflow was meant for: what its `on.command` says if that can be read, else its name."""
    try:
        on = read_yaml(path, data).at("on")
    except InvalidWorkflow:
        return workflow_name(path)
    return next((value.text for key, value in on.entries if key.text == "command" and value.text), workflow_name(path))
