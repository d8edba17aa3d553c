"""A task that breaks its own machine has failed, with that reason, on one machine, and isn't an internal error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, journey

pytestmark = pytest.mark.usefixtures("local_machines")

BREAKS = """
name: Breaks
on: {command: breaks}
tasks:
  - {name: parent, run: 'echo begun; kill -9 $PPID; echo PID 1 lives'}
  - {name: recorder, if: always(), run: 'echo begun; kill -9 $(cat ~/.gibil/jobs/task-1/pid); sleep 300'}
  - {name: shells, if: always(), run: 'echo begun; pkill -9 -x sh; echo none'}
  - {name: everything, if: always(), run: 'echo begun; kill -9 -1; sleep 300'}
  - {name: files, if: always(), run: 'echo begun; rm -rf ~/.gibil/jobs; exit 9'}
  - {name: workspace, if: always(), run: 'rm -rf "$GITHUB_WORKSPACE"'}
  - {name: next, if: always(), run: 'true'}
  - {name: shell, if: always(), run: 'true'}
"""
TOOLS = """
name: Tools
on: {command: tools}
tasks:
  - name: break
    run: |
      cd /usr/bin; echo 'exit 3' >x; chmod +x x
      for t in flock tail stat base64 setsid; do cp x "$t"; done
  - {name: next, if: always(), run: 'echo next'}
  - {name: remove, if: always(), run: 'rm -f /usr/bin/bash /bin/bash /usr/bin/dash /usr/bin/sh'}
  - {name: last, if: always(), run: 'echo last'}
"""


@pytest.mark.parametrize(("command", "workflow"), [("breaks", BREAKS), ("tools", TOOLS)], ids=["breaks", "tools"])
async def test_the_failure_is_the_tasks_and_not_gibils(tmp_path: Path, command: str, workflow: str) -> None:
    async with journey(tmp_path, workflows={f"{command}.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", f"/gibil {command}")
        check = await world.closed_check(number)
        output = f"{check.title}\n{check.summary}\n{check.text}"
        assert check.conclusion == "failure", output
        assert "new one" not in output, output
        assert "itself" not in output, output
        assert ".sock" not in output, output
        phases = [event["phase"] for event in world.bot.events(check.external_id)]
        assert phases.count("forged") == 1
        if command == "breaks":
            assert "✅ | `parent`" in output, output
            assert output.count("its supervisor was killed by something on the machine") == 2, output
            assert "exit status 9" in output, output
            assert "does not exist (an earlier task removed it)" in output, output
        else:
            assert "exit status 127" in output, output
        await world.all_published()
        await world.assert_nothing_left()
