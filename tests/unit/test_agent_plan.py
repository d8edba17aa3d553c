"""The key `agent:` of a task: what it accepts, what it rejects and how, and the plans that follow."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import msgspec
import pytest

from gibil_bot.agent_task import AgentPlan
from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.model import Command, Plan, Trust
from gibil_bot.planning.agents import agent_support
from gibil_bot.planning.plan import AgentSupport, Unsupported, catalogue, check_files, for_command, for_pull_request
from gibil_bot.planning.schema import parse_repository_file, parse_workflow
from tests.doubles.facts import facts

HEAD = "on: {command: x}\ninputs: {what: {default: the tests}}\ntasks:\n  - {name: test, run: pytest}\n"
AGENTS = AgentSupport()


def planned(task: str, *, head: str = HEAD, agents: AgentSupport = AGENTS, **inputs: str) -> Plan:
    found = catalogue({"x.yml": f"{head}  - {task}\n".encode()}, {}, base_ref="main")
    assert not found.problems, found.problems
    (plan,) = for_command(found, Command(word="x", arguments=inputs), replace(facts(), agents=agents))
    return plan


def agent(text: str, **inputs: str) -> AgentPlan:
    found = planned(f"{{name: a, agent: {text}}}", head=HEAD, agents=AGENTS, **inputs).tasks[-1].agent
    assert found is not None
    return found


def problem(task: str, *, head: str = HEAD) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        parse_workflow("x.yml", f"{head}  - {task}\n".encode())
    return str(caught.value)


def test_attempts_side_by_side_have_no_services() -> None:
    head = "on: {command: x}\nservices: {cache: {image: redis}}\ntasks:\n"
    with pytest.raises(UsageError, match=r"attempts of 'a' .* without 1 service \('cache'\); remove `attempts`"):
        planned("{name: a, agent: {prompt: Fix it, attempts: 2}}", head=head)
    assert planned("{name: a, agent: {prompt: Fix it, attempts: 1}}", head=head).tasks[0].name == "services"


def test_a_prompt_alone_is_enough() -> None:
    plan = planned("agent: Make it pass.")
    assert (plan.tasks[-1].name, plan.tasks[-1].run, plan.tasks[-1].condition) == ("Make it pass.", "", "success()")
    assert plan.tasks[-1].agent == AgentPlan(engine="claude", prompt="Make it pass.")


def test_every_option_is_read_and_survives_storage() -> None:
    plan = planned(
        "{name: a, timeout-minutes: 5, agent: {engine: command, command: ./bot, prompt: Fix it, model: gpt-5.5, max-turns: 7,"
        " budget: 2.50, max-tokens: 20000, allow: [pypi, 'Docs.Python.org', '*.example.com:8443'], attempts: 3, choose: pytest"
        " -q, until: test, rounds: 2, context: last-failure}}"
    )
    task = plan.tasks[-1]
    assert (task.timeout_s, task.condition) == (300, "failure()")
    assert task.agent == AgentPlan(
        engine="command",
        command="./bot",
        prompt="Fix it",
        model="gpt-5.5",
        max_turns=7,
        budget_usd=Decimal("2.50"),
        max_tokens=20000,
        allow=("pypi", "docs.python.org", "*.example.com:8443"),
        attempts=3,
        choose="pytest -q",
        until="test",
        rounds=2,
        context=("last-failure",),
    )
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_an_agent_with_until_works_only_after_a_failure_and_has_three_rounds() -> None:
    task = planned("{agent: {prompt: p, until: test}}").tasks[-1]
    assert task.condition == "failure()"
    assert task.agent is not None
    assert task.agent.rounds == 3
    assert planned("{if: always(), agent: {prompt: p, until: test}}").tasks[-1].condition == "always()"


@pytest.mark.parametrize(("output", "writes"), [("changes", True), ("review", False), ("answer", False)])
def test_the_output_says_whether_files_should_change(output: str, writes: bool) -> None:
    assert agent(f"{{prompt: p, output: {output}}}").writes is writes


def test_values_in_a_prompt_are_text_that_is_evaluated_once() -> None:
    prompt = "Fix ${{ inputs.what }} for ${{ github.actor }} on ${{ github.base_ref }}."
    found = agent(f"'{prompt}'", what="$(rm -rf /) `x` ${{ github.actor }} 'q' \u202ex")
    assert found.prompt == "Fix $(rm -rf /) `x` ${{ github.actor }} 'q' x for Ada on main."


def test_a_prompt_that_is_too_long_with_its_inputs_is_rejected_when_planned() -> None:
    long = "p " * 9_970
    with pytest.raises(UsageError, match="is longer than 20,000 characters"):
        planned(f"agent: '{long}${{{{ inputs.what }}}} ${{{{ inputs.what }}}}'", what="x" * 34)


def test_an_engine_that_cannot_work_here_is_reported_before_a_machine_exists() -> None:
    agents = AgentSupport(default_engine="codex", unusable={"codex": "no key", "claude": "set GIBIL_MODEL_KEY_ANTHROPIC"})
    with pytest.raises(Unsupported, match=r"^x can't run here: no key$"):
        planned("agent: p", agents=agents)
    with pytest.raises(Unsupported, match="set GIBIL_MODEL_KEY_ANTHROPIC"):
        planned("agent: {prompt: p, engine: claude}", agents=agents)
    found = planned("agent: {prompt: p, engine: gemini}", agents=agents).tasks[-1].agent
    assert found is not None
    assert found.engine == "gemini"


VENDORS = {"gemini": "gemini", "claude": "anthropic", "codex": "openai", "command": "", "own": "openai"}


@pytest.mark.parametrize(
    ("keys", "default", "engine", "unusable"),
    [
        (("anthropic", "openai"), "", "claude", {"gemini"}),
        (("openai",), "", "codex", {"claude", "gemini"}),
        (("gemini",), "command", "command", {"claude", "codex", "own"}),
        ((), "", "claude", {"claude", "codex", "gemini", "own"}),
    ],
)
def test_the_default_engine_is_the_first_that_has_a_key(
    keys: tuple[str, ...], default: str, engine: str, unusable: set[str]
) -> None:
    found = agent_support(VENDORS, keys, default=default)
    assert (found.default_engine, set(found.unusable)) == (engine, unusable)


def test_without_a_key_the_answer_says_what_the_operator_sets() -> None:
    with pytest.raises(Unsupported, match=r"needs an agent, and this bot has no key .* sets GIBIL_MODEL_KEY_ANTHROPIC, "):
        planned("agent: p", agents=agent_support(VENDORS, ()))
    with pytest.raises(Unsupported, match=r"'claude' needs a key of Anthropic, and this bot has those of OpenAI\."):
        planned("agent: {prompt: p, engine: claude}", agents=agent_support(VENDORS, ["openai"]))


def test_an_untrusted_pull_request_alone_starts_no_agent() -> None:
    text = b"on: {command: x, pull_request: [opened]}\ntasks: [{agent: p}]\n"
    found = catalogue({"x.yml": text}, {}, base_ref="main")
    for trust, plans in ((Trust.TRUSTED, 1), (Trust.UNTRUSTED, 0)):
        started, refusals = for_pull_request(found, "opened", facts(trust=trust, event_name="pull_request"))
        assert (len(started), refusals) == (plans, ())
    assert len(for_command(found, Command(word="x"), facts(trust=Trust.UNTRUSTED))) == 1


def test_an_operators_engine_is_accepted_where_it_is_known() -> None:
    text = b"on: {command: x}\ntasks: [{agent: {prompt: p, engine: goose}}]\n"
    assert check_files({"x.yml": text}, engines=("claude", "goose")) == ()
    found = catalogue({"x.yml": text}, {}, base_ref="main", engines=("goose",))
    assert [workflow.name for workflow in found.workflows] == ["x"]


def test_tasks_that_replace_one_task_keep_its_name_for_until() -> None:
    text = b"on: {command: x}\ntasks:\n  - {name: all, uses: .gibil.yml, detect: test}\n  - {agent: {prompt: p, until: all}}\n"
    own = b"tasks: [{name: unit, run: a}, {name: lint, run: b}]"
    detected, _ = for_command(catalogue({"x.yml": text}, {}, base_ref="main"), Command(word="x"), facts())[0].tasks
    assert (detected.name, detected.part_of) == ("all", "all")
    plan = for_command(catalogue({"x.yml": text}, {".gibil.yml": own}, base_ref="main"), Command(word="x"), facts())[0]
    assert [(task.name, task.part_of) for task in plan.tasks] == [("unit", "all"), ("lint", "all"), ("p", "")]


REJECTED = {
    "{agent: }": "5:12: expected a prompt, or prompt: and options, got nothing",
    "{agent: ''}": "5:13: a prompt can't be empty",
    "{agent: [a]}": "5:13: expected a prompt, or prompt: and options, got a list",
    "{agent: {model: m}}": "5:13: agent needs the key 'prompt'",
    "{agent: {promt: p}}": "5:14: agent has no key 'promt' (did you mean 'prompt'?)",
    "{agent: {prompt: p, engine: claud}}": "5:33: there is no engine 'claud' (did you mean 'claude'?)",
    "{agent: {prompt: p, engine: goose}}": "5:33: there is no engine 'goose'; there are claude, codex, gemini, opencode, "
    "command",
    "{agent: {prompt: p, engine: command}}": "5:33: the engine 'command' needs the key 'command': the program that reads "
    "the prompt",
    "{agent: {prompt: p, command: ./x}}": "5:25: command belongs to engine: command; write that too, or remove it",
    "{agent: {prompt: p, max-turns: 0}}": "5:36: expected a whole number from 1 to 1000, got the number 0",
    "{agent: {prompt: p, max-turns: 1001}}": "5:36: expected a whole number from 1 to 1000, got the number 1001",
    "{agent: {prompt: p, attempts: 9}}": "5:35: expected a whole number from 1 to 8, got the number 9",
    "{agent: {prompt: p, until: test, rounds: 11}}": "5:46: expected a whole number from 1 to 10, got the number 11",
    "{agent: {prompt: p, rounds: 2}}": "5:25: rounds needs until: the name of the task that decides whether it is done",
    "{agent: {prompt: p, choose: make}}": "5:25: choose decides among several attempts; write attempts: 2 or more",
    "{agent: {prompt: p, budget: 0}}": "5:33: expected an amount of US dollars above 0, at most 1000, got the number 0",
    "{agent: {prompt: p, budget: -1}}": "5:33: expected an amount of US dollars above 0, at most 1000, got the number -1",
    "{agent: {prompt: p, budget: 1000.01}}": "5:33: expected an amount of US dollars above 0, at most 1000, got the number "
    "1000.01",
    "{agent: {prompt: p, budget: .inf}}": "5:33: expected an amount of US dollars above 0, at most 1000, got the string '.inf'",
    "{agent: {prompt: p, budget: $2}}": "5:33: expected an amount of US dollars above 0, at most 1000, got the string '$2'; "
    "write the number alone",
    "{agent: {prompt: p, max-tokens: 10}}": "5:37: expected a whole number from 1000 to 1000000000, got the number 10",
    "{agent: {prompt: p, until: tst}}": "5:32: there is no earlier task 'tst' (did you mean 'test'?)",
    "{name: a, agent: {prompt: p, until: a}}": "5:41: 'a' is an agent's task; until names an earlier task with a script",
    "{agent: {prompt: p, output: review, until: test}}": "5:41: until belongs to output: changes, and this agent's output "
    "is review",
    "{agent: {prompt: p, output: report}}": "5:33: 'report' is not one of changes, review, answer",
    "{agent: {prompt: p, allow: [pip]}}": "5:33: 'pip' isn't the name of a registry here; write pypi",
    "{agent: {prompt: p, allow: [pipy]}}": "5:33: 'pipy' is neither a host nor a registry; registries are npm, pypi",
    "{agent: {prompt: p, allow: ['https://a.org/x']}}": "5:33: 'https://a.org/x' has to be a host without a scheme",
    "{agent: {prompt: p, allow: 10.0.0.1}}": "5:32: '10.0.0.1' is an address",
    "{agent: p, run: make}": "5:16: a task has either run or agent; write a second task for the script",
    "{agent: p, detect: test}": "5:16: a task has either detect or agent; write a task for each",
    "{agent: p, shell: sh}": "5:16: an agent has no script, so no shell; remove it",
    "{agent: p, prepare: true}": "5:16: an agent can't prepare a machine",
    "{agent: 'Use ${{ secrets.KEY }}'}": "5:21: a prompt goes to the model's vendor and is readable on the machine, so it "
    "can't "
    "contain a secret; move what needs KEY to a workflow without an agent",
    "{agent: 'Use ${{ inputs.wat }}'}": "5:22: there is no input 'wat' (did you mean 'what'?)",
    "{agent: 'Use ${{ env.A }}'}": "5:21: env is known only on the machine; a prompt may contain inputs and github",
    "{agent: 'Use ${{ github.tokn }}'}": "5:29: there is no github.tokn here",
    "{agent: {prompt: p, attempts: 2, choose: 'x ${{ inputs.what }}'}}": '5:46: ${{ inputs.what }}: expressions are not '
    'evaluated '
    'in scripts; write "$GIBIL_INPUT_WHAT"',
    "{agent: {prompt: p, anthropic_api_key: k}}": "5:25: anthropic_api_key: machines get no keys of models",
    "{agent: {prompt: p, writes: false}}": "5:25: writes: write output: changes, review or answer",
}  # fmt: skip


@pytest.mark.parametrize("task", REJECTED)
def test_an_invalid_agent_is_rejected_with_its_position(task: str) -> None:
    assert problem(task).startswith(f"x.yml:{REJECTED[task]}")


@pytest.mark.parametrize("agent", ["{agent: p}", "{agent: {prompt: p, engine: command, command: x, output: answer}}"])
def test_a_workflow_with_an_agent_has_no_secrets(agent: str) -> None:
    head = "on: {command: x}\nsecrets: [DEPLOY]\ntasks:\n  - {run: make}\n"
    assert problem(agent, head=head) == (
        "x.yml:2:1: a workflow with an agent gets no secrets: what the agent starts or writes could read them; move the tasks "
        "that need them to another workflow"
    )


def test_until_cannot_name_a_later_task() -> None:
    tasks = "on: {command: x}\ntasks:\n  - {name: a, agent: {prompt: p, until: test}}\n"
    assert problem("{name: test, run: x}", head=tasks) == (
        "x.yml:3:41: the task 'test' comes later; until names an earlier one"
    )  # fmt: skip


def test_a_repositorys_file_has_no_agents() -> None:
    with pytest.raises(InvalidWorkflow, match="agent: only a workflow's task can be an agent's"):
        parse_repository_file(".gibil.yml", b"tasks: [{agent: p}]")
