"""Conditions that a machine evaluates itself mean the same there as for the bot."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from gibil_bot.machines.provision_script import wanted_after
from gibil_bot.planning import expressions
from gibil_bot.scripts.templates import text
from tests.doubles.patience import patient

CONDITIONS = [
    "env.A", "!env.A", "!!env.A", "env.NONE", "env.A == env.B", "env.A != env.B", "env.A < env.B", "env.A >= env.B",
    "env.A == 'x'", "env.A == 'X y'", "env.A == ''", "env.A == null", "env.NONE == null", "env.NONE == ''", "env.NONE == 0",
    "env.A == 1", "env.A != 1", "env.A > 0.5", "env.A < 10", "env.A <= 255", "env.A == 0x10", "env.A == true", "env.A == false",
    "env.A && env.B", "env.A || env.B", "(env.A || 'b') == 'b'", "(env.A && 7) == 7", "!(env.A == 'x') && env.B",
    "contains(env.A, env.B)", "contains(env.A, '')", "contains(env.A, 'X')", "contains(env.NONE, env.NONE)",
    "startsWith(env.A, 'X')", "startsWith(env.A, env.B)", "endsWith(env.A, 'Y')", "endsWith(env.A, env.B)",
    "endsWith(env.A, 1)", "contains(env.A, true)", "startsWith(1.5, env.B)", "contains(0x10, env.A)",
    "always() && env.A", "failure() && env.A", "success() || env.A", "cancelled() || env.A", "!cancelled() && env.A",
    "env.A == '\"; exit 0 #'", "env.A == 'a\\b$x`'", "env.A == 'it''s'", "env.A < 'b'", "env.A == 'ünï'",
    "inputs.x == env.NONE", "github.actor == env.A",
]  # fmt: skip
ENVIRONMENTS: list[dict[str, str]] = [
    {}, {"A": "", "B": ""}, {"A": "x", "B": "X"}, {"A": "X y", "B": "y"}, {"A": "1", "B": "1.0"}, {"A": " 10\t", "B": "9"},
    {"A": "0x10", "B": "1e1"}, {"A": "-0x10", "B": "-16"}, {"A": "1.", "B": ".5"}, {"A": "1x", "B": "nan"},
    {"A": "inf", "B": "NaN"},
    {"A": "true", "B": "false"}, {"A": "a\nb", "B": "\n"}, {"A": '"; exit 0 #', "B": "\\"}, {"A": "a\\b$x`", "B": "$x"},
    {"A": "it's", "B": "'"}, {"A": "ünï", "B": "ï"}, {"A": "0", "B": "00"}, {"A": "s", "B": "z"}, {"A": "b1", "B": "n1"},
]  # fmt: skip


@pytest.mark.parametrize("status", ["success", "failure"])
def test_a_condition_means_the_same_on_the_machine(status: str) -> None:
    if shutil.which("awk") is None:
        pytest.skip("awk is missing here: apt-get install mawk")
    function = re.search(r"^gibil_holds\(\) \{\n.*?^\}\n", text("provision"), re.MULTILINE | re.DOTALL)
    assert function is not None
    script, expected, cases = [function[0]], [], []
    for condition in CONDITIONS:
        wanted = wanted_after(status, condition)
        for env in ENVIRONMENTS:
            cases.append((condition, env))
            expected.append(expressions.evaluate(condition, status=status, inputs={}, github={}, env=env))
            if wanted in ("yes", "no"):
                script.append(f"[ {wanted} = yes ]; echo $?\n")
            else:
                script.append(
                    f"gibil_holds {shlex.join([wanted, *(f'{name}={value}' for name, value in env.items())])}; echo $?\n"
                )
    done = subprocess.run(["bash"], input="".join(script), capture_output=True, text=True, timeout=patient(90))
    assert done.stderr == ""
    answers = [line == "0" for line in done.stdout.split()]
    assert len(answers) == len(expected)
    assert [case for case, one, other in zip(cases, answers, expected, strict=True) if one != other] == []


def test_a_condition_without_environment_variables_is_evaluated_in_advance() -> None:
    assert [wanted_after("success", each) for each in ("success()", "failure()", "always()", "false")] == [
        "yes",
        "no",
        "yes",
        "no",
    ]
    assert [wanted_after("failure", each) for each in ("success()", "failure()", "env.A", "true")] == ["no", "yes", "no", "no"]
