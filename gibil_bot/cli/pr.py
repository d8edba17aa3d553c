"""`gibil pr`: pull requests with commits that were made on a machine."""

from __future__ import annotations

import functools
import sys

import click

from gibil_bot.cli.machine import name_argument, opened, provider_option, run_async, settings_of
from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.cli.push import print_pushed
from gibil_bot.errors import UsageError


@click.group()
def pr() -> None:
    """Open pull requests with the commits that were made on a machine."""


@pr.command(short_help="Push the commits, and open a pull request.")
@name_argument
@click.option("--title", metavar="TEXT", help="Its title. The subject of the commit by default, if there is only one.")
@click.option("--body", metavar="TEXT", help="Its text, in Markdown.")
@click.option("--body-file", metavar="FILE", help="A file with its text; - is stdin.")
@click.option(
    "--base", metavar="BRANCH", help="The branch to merge into. By default the one the machine was created from, if it exists."
)
@click.option("--into", metavar="OWNER/REPO", help="The repository to merge into. By default the parent of a fork.")
@click.option("--branch", metavar="BRANCH", help="The branch to push to.  [default: gibil/NAME]")
@click.option("--draft", is_flag=True, help="Open it as a draft.")
@click.option("--with-workflows", is_flag=True, help="Also push changes to protected files, such as workflows and CLAUDE.md.")
@provider_option
@json_option
def create(
    name: str,
    title: str | None,
    body: str | None,
    body_file: str | None,
    base: str | None,
    into: str | None,
    branch: str | None,
    draft: bool,
    with_workflows: bool,
    provider: str | None,
    as_json: bool,
) -> None:
    """Push the commits that were made on a machine, and open a pull request, with your own credentials.

    Pushes like `gibil push`, then opens the pull request with your GitHub token: from GH_TOKEN or GITHUB_TOKEN
    (GH_ENTERPRISE_TOKEN for an Enterprise Server), from gh, or from git's credential helper. The machine never gets it. If the
    pull request is already open, it gets the new commits; its title and text stay as they are.

    The commits are pushed to the repository that the machine was created from. If that is a fork, the pull request is opened in
    its parent; --into sets another repository: the fork itself, or another fork of the same repository. The default of --base
    is the branch that the machine was created from, if the repository has it, else its default branch.

    \b
    gibil pr create agent-task
    gibil pr create agent-task --title "Parse faster" --body-file notes.md --draft
    gibil pr create agent-task --branch agent/parser --base develop --json | jq -r .url
    gibil pr create agent-task --into me/my-fork
    """
    text = _body(body, body_file)
    sys.exit(run_async(_create(name, title, text, base, into, branch, draft, with_workflows, provider, as_json)))


def _body(body: str | None, body_file: str | None) -> str:
    if body is not None and body_file is not None:
        raise UsageError("use --body or --body-file, not both")
    if body_file is None:
        return body or ""
    try:
        with click.open_file(body_file, "rb") as file:
            return bytes(file.read()).decode()
    except OSError as error:
        raise UsageError(f"{body_file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{body_file} is not UTF-8") from None


async def _create(
    name: str,
    title: str | None,
    body: str,
    base: str | None,
    into: str | None,
    branch: str | None,
    draft: bool,
    with_workflows: bool,
    provider: str | None,
    as_json: bool,
) -> int:
    from gibil_bot.commits.pull_requests import PullRequestOptions, open_pull_request
    from gibil_bot.wiring import open_pull_requests

    options = PullRequestOptions(
        title=title, body=body, base=base, into=into, branch=branch, draft=draft, with_workflows=with_workflows
    )  # fmt: skip
    async with opened(name, provider) as session:
        settings = settings_of(provider)
        connect = functools.partial(open_pull_requests, settings)
        pull_request = await open_pull_request(session.machine, session.shell, options, settings, connect)
    print_pushed(pull_request.commits)
    which = f"pull request #{pull_request.number} to {pull_request.base} of {pull_request.into}"
    if pull_request.already_existed:
        note = ""
        if draft != pull_request.draft:
            note = " (it is a draft)" if pull_request.draft else " (it is not a draft)"
        print_message(f"{which} was already open; the commits are added{note}")
    else:
        print_message(f"{'draft ' if pull_request.draft else ''}{which} is open")
    if as_json:
        print_json(
            {
                "name": name,
                "repo": pull_request.commits.url,
                "branch": pull_request.commits.branch,
                "into": pull_request.into,
                "base": pull_request.base,
                "commit": pull_request.commits.head,
                "number": pull_request.number,
                "url": pull_request.url,
                "draft": pull_request.draft,
                "already_existed": pull_request.already_existed,
            }
        )
    else:
        print_text(f"{pull_request.url}\n")
    return 0
