"""The real Claude Code and Codex, from npm, on a local machine: through the model proxy to a scripted model."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

from gibil_bot.agent_task import AgentPlan
from gibil_bot.agents.dialects import new_dialect
from gibil_bot.agents.engine import Engine
from gibil_bot.agents.engines.loading import load_engines
from gibil_bot.agents.launch import install_script, launch, program_of
from gibil_bot.agents.output import AgentOutput
from gibil_bot.agents.transcript import Ended
from gibil_bot.demo.model_double import FaultKind
from gibil_bot.demo.model_script import Run, Say, Script, Write
from gibil_bot.model import Result
from gibil_bot.ssh.client import SSHShell, connect
from gibil_bot.ssh.remote_forwarding import forward_remote
from tests.doubles.machines import guest_lodging
from tests.doubles.models import QUICK, CountingBudget, proxied
from tests.doubles.patience import patient
from tests.doubles.tools import needs

pytestmark = [
    pytest.mark.usefixtures("local_machines"),
    needs("curl"),
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "aarch64"), reason="the engines aren't published for this processor"
    ),
]

PROJECT, PROMPT, HOME = "/root/project", "/root/.gibil/agent/prompt", "/root/.gibil/agent/home"
WORK = Script(
    steps=(
        Run("cat /proc/[0-9]*/cmdline >/root/arguments 2>/dev/null; cat README.md"),
        Write("NEW.md", "written by the agent\n"),
        Say("Done: NEW.md exists."),
    )
)
FAULTS: dict[str, dict[FaultKind, str]] = {
    "claude": {
        "cut": "Connection to the API was lost",
        "silence": "the model's vendor sent nothing for 1 s in the middle of an answer",
    },
    "codex": {
        "cut": "stream disconnected before completion",
        "silence": "the model's vendor was silent 2 times",  # it tries again after the first one
    },
}
CHECKOUT = f"""
mkdir -p {PROJECT} {HOME} && cd {PROJECT} && git init -q && echo '# Scratch' >README.md && git add -A &&
git -c user.name=a -c user.email=a@b.example commit -qm start && echo 'Add NEW.md.' >{PROMPT}
"""


async def run(shell: SSHShell, script: str, **more: object) -> Result:
    return await shell.run(script, timeout_s=patient(120), **more)  # type: ignore[arg-type]


async def install(shell: SSHShell, engine: Engine) -> None:
    done = await run(shell, install_script(engine))
    assert done.exit_status == 0, done.stderr.decode()
    assert done.stdout.startswith(f"gibil: {engine.title} {engine.version}: ".encode())
    again = await run(shell, install_script(engine))
    assert again.stdout.decode() == f"gibil: {engine.title} {engine.version} is installed ({program_of(engine)})\n"


async def work(shell: SSHShell, engine: Engine, budget: CountingBudget, fault: FaultKind | None = None) -> tuple[Result, Ended]:
    """Let the engine work in a clean checkout, and read what it printed. `fault`: of every call after the first one."""
    patience = replace(QUICK, idle_s=1.0) if fault == "silence" else QUICK
    assert engine.protocol is not None
    await run(shell, f"cd {PROJECT} && git clean -qfdx && git checkout -q .")
    async with (
        proxied(engine.protocol, WORK, budget=budget, patience=patience) as proxy,
        forward_remote(shell, proxy.proxy.port) as port,
    ):
        if fault is not None:
            proxy.double.fault(fault, times=1000, after=1)
        token = proxy.access.token.reveal()
        made = launch(
            engine,
            AgentPlan(engine=engine.name, prompt="Add NEW.md."),
            url=f"http://127.0.0.1:{port}",
            token=token,
            home=HOME,
            prompt_file=PROMPT,
            checkout=PROJECT,
        )
        done = await run(shell, made.script(), env=made.job_environment({}))
        arguments = await run(shell, "cat /root/arguments")
        assert made.argv[0].encode() in arguments.stdout
        assert token.encode() not in arguments.stdout
    output = AgentOutput(new_dialect(engine.dialect), folder=PROJECT)
    output.feed(done.stdout)
    output.end(done.exit_status, done.stderr.decode(errors="replace"))
    assert output.ended is not None
    return done, output.ended


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_a_real_program_changes_a_file_and_ends_when_its_budget_or_its_connection_does(
    name: str, egress: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = load_engines(None)[name]
    async with guest_lodging(tmp_path_factory) as lodging:
        allowed = tuple(egress.split(",")) if egress else ()
        machine = await lodging.provider.create(lodging.spec(name, ttl_s=900, egress_allow=allowed))
        shell = await connect(machine.endpoint, lodging.key.export_private_key().decode())
        try:
            await run(shell, CHECKOUT)
            await install(shell, engine)

            budget = CountingBudget()
            done, ended = await work(shell, engine, budget)
            assert (done.exit_status, ended.reason, ended.is_success) == (0, "completed", True), done.stderr
            changed = await run(shell, f"cd {PROJECT} && git status --short && cat NEW.md")
            assert changed.stdout == b"?? NEW.md\nwritten by the agent\n"
            assert ended.text == "Done: NEW.md exists."
            assert len(budget.billed) == 3
            assert not budget.refusals

            budget = CountingBudget(calls=1)
            done, ended = await work(shell, engine, budget)
            assert (len(budget.billed), len(budget.refusals)) == (1, 1)
            assert (done.exit_status, ended.is_success) == (1, False)
            assert "the budget of this task is used up" in ended.text

            for fault, words in FAULTS[name].items():
                done, ended = await work(shell, engine, CountingBudget(), fault)
                assert (done.exit_status, ended.reason) == (1, "model_error")
                assert words in ended.text
        finally:
            await shell.close()
