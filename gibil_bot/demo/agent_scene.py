"""What `gibil demo --agent` adds: a scripted model, an engine for it, and what the agent used.

The engine is an operator's file, as GIBIL_ENGINES has them. Its program is `coding_agent.py`, a complete small agent: it isn't
scripted, its model is.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from textwrap import indent
from typing import Any

from gibil_bot.agent_task import AgentResult
from gibil_bot.demo import project
from gibil_bot.demo.model_double import ModelDouble
from gibil_bot.demo.model_script import Read, Run, Say, Script, Write
from gibil_bot.humanize import count, dollars

ENGINE = "small"
_FILE = "sexagesimal/reciprocals.py"
_TESTS = "python3 -m unittest discover --start-directory tests --top-level-directory . 2>&1 | tail -n 5"
NO_KEY = "no process and no file of this machine has the key of the model"
# The pattern doesn't find itself in the command lines and outputs that contain it.
SEARCH = (
    f"grep -rlE -D skip 'sk-doubl[e]-' /proc/[0-9]*/environ /proc/[0-9]*/cmdline /root /tmp /etc 2>/dev/null || echo '{NO_KEY}'"
)


def repair() -> Script:
    """Return the script of a model that looks for its key in addition to what it is asked for."""
    repaired = project.changed_files()[_FILE].decode()
    return Script(
        when="Make the project's tests pass",
        steps=(
            Read(_FILE),
            Run(SEARCH),
            Write(_FILE, repaired),
            Run(_TESTS),
            Say("PRIMES lacked 5, so 1/5 was taken for a fraction that doesn't end. With 2, 3 and 5 all tests pass."),
        ),
    )


def write_engine(folder: Path) -> None:
    """Write the file of the engine, with its program, into a new folder. Blocking."""
    here = Path(__file__).parent
    program = (here / "coding_agent.py").read_text()
    folder.mkdir()
    text = (here / "coding_agent.yml").read_text() + "files:\n  coding_agent.py: |\n" + indent(program, "    ")
    (folder / f"{ENGINE}.yml").write_text(text)


def settings(model: ModelDouble, engines: Path) -> dict[str, str]:
    """Return the bot's settings for agents."""
    return {
        "GIBIL_MODEL_KEY_ANTHROPIC": model.key,
        "GIBIL_MODEL_URL_ANTHROPIC": model.url,
        "GIBIL_ENGINES": str(engines),
        "GIBIL_ENGINE": ENGINE,
    }


async def result_of(data_dir: Path, run_id: str) -> AgentResult | None:
    """Return what the bot stored of the agent of a run."""
    from gibil_bot.config import Settings
    from gibil_bot.wiring import open_store

    store = await open_store(Settings(data_dir=data_dir, database_url=f"sqlite:///{data_dir / 'gibil.db'}"), exclusive=False)
    try:
        run = await store.runs.get(run_id)
        results = await store.runs.task_results(run_id, run.machine_attempt) if run is not None else []
    finally:
        await store.close()
    return next((result.agent for result in results if result.agent is not None), None)


async def usage_view(model: ModelDouble, agent: AgentResult, data_dir: Path) -> dict[str, Any]:
    """Return the part of the result for programs: `agent`."""
    spent = agent.spent
    return {
        "engine": agent.engine,
        "model": agent.model,
        "ended": agent.ended,
        "calls": spent.calls,
        "tokens": spent.usage.tokens,
        "usd": f"{spent.usd:f}",
        "budget": agent.budget,
        "calls_with_key": sum(call.has_key for call in model.calls),
        "key_left_the_bot": not _says_no_key(model) or await asyncio.to_thread(_is_in_files, model.key.encode(), data_dir),
    }


def rows(agent: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a person sees of that, as labels and texts."""
    no_key = "the agent searched its machine for the key and found none"
    if agent["key_left_the_bot"]:
        no_key = "it has left the bot, and is on the machine or in a file of the bot"
    return [
        ("engine", f"{agent['engine']}, with {agent['model']}"),
        ("result", agent["ended"]),
        ("used", f"{count(agent['calls'], 'call')} of the model, {agent['tokens']:,} tokens, {dollars(Decimal(agent['usd']))}"),
        ("budget", agent["budget"]),
        ("key", f"the bot added it to {count(agent['calls_with_key'], 'call')}; {no_key}"),
    ]


def _says_no_key(model: ModelDouble) -> bool:
    """Return whether the search of the machine found no key, as the agent reported it to the model."""
    for message in model.calls[-1].body["messages"] if model.calls else ():
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_result" and block["content"].strip() == NO_KEY:
                return True
    return False


def _is_in_files(key: bytes, data_dir: Path) -> bool:
    """Return whether the bot's files contain the key: its database, and the logs and transcripts of its runs."""
    files = [*data_dir.glob("*"), *(data_dir / "logs").rglob("*")]
    return any(path.is_file() and key in path.read_bytes() for path in files)
