"""The files that steer agents are replaced on a real machine, over SSH (agents/instructions.py)."""

from __future__ import annotations

import pytest

from gibil_bot.agents.instructions import put_back, replace, steering_globs
from gibil_bot.errors import SSHError
from gibil_bot.ports import FilesAt, RepositoryFile
from gibil_bot.scripts.clone import WORKSPACE
from tests.contracts.shells import far_machine
from tests.doubles.patience import patient

STATE = "/root/.gibil/agent/0/instructions"


async def test_an_agent_on_a_machine_sees_the_base_branchs_instructions_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = FilesAt(
        commit="b" * 40,
        files={
            "CLAUDE.md": RepositoryFile(content=b"base\n"),
            ".claude/hook": RepositoryFile(content=b"#!/bin/sh\n", is_executable=True),
            "link/AGENTS.md": RepositoryFile(content=b"base\n"),
        },
        omitted=("huge/AGENTS.md",),
    )
    steering = steering_globs(["RULES"])
    async with far_machine("local", tmp_path_factory) as far:
        shell = await far.connect()

        async def sh(script: str) -> str:
            result = await shell.run(f"set -e; cd {WORKSPACE}; {script}", timeout_s=patient(30))
            assert result.exit_status == 0, result.stderr
            return result.stdout.decode().strip()

        git = "git -c user.name=a -c user.email=a@b"
        await shell.run(f"mkdir -p {WORKSPACE}; echo above >/root/CLAUDE.md; git init -q {WORKSPACE}")
        sha = await sh(
            f"echo head >CLAUDE.md; mkdir -p .claude a; echo head | tee .claude/settings.json a/RULES >code; ln -s /tmp link;"
            f"{git} add -A; {git} commit -qm head; git rev-parse HEAD"
        )
        replaced = await replace(shell, base, steering, STATE)
        assert replaced.base == base.commit
        assert set(replaced.removed) == {"CLAUDE.md", ".claude", "a/RULES"}
        assert replaced.restored == ("CLAUDE.md", ".claude/hook")
        assert replaced.omitted == ("huge/AGENTS.md", "link/AGENTS.md")
        assert await sh("cat CLAUDE.md; .claude/hook; test ! -e /root/CLAUDE.md; test ! -e /tmp/AGENTS.md; ls -A") == (
            "base\n.claude\n.git\nCLAUDE.md\na\ncode\nlink"
        )
        await sh("echo agent | tee CLAUDE.md code")
        result = await put_back(shell, sha, steering, STATE)
        assert (result.dropped, result.rewritten, result.lost) == (("CLAUDE.md",), False, False)
        assert await sh("git status --porcelain; cat .claude/settings.json a/RULES CLAUDE.md") == "M code\nhead\nhead\nhead"

        # The next round, in which the agent destroys the repository
        assert set((await replace(shell, base, steering, STATE)).removed) == set(replaced.removed)
        await sh("rm -rf .git")
        with pytest.raises(SSHError, match="can't be put back: gibil: there is no repository in /root/project any more"):
            await put_back(shell, sha, steering, STATE)
        await shell.close()
