"""How engines are installed and started: scripts for a real shell, and where a task's token is."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.agent_task import AgentPlan
from gibil_bot.agents.engine import FOLDER, Engine, Package
from gibil_bot.agents.engines.loading import load_engines
from gibil_bot.agents.launch import Launch, install_script, install_task, launch
from gibil_bot.errors import UsageError
from tests.doubles.tools import needs

TOKEN = "the-task's-token"
ENGINES = load_engines(None)


def launched(engine: Engine, plan: AgentPlan | None = None, root: str = "/root", token: str = TOKEN) -> Launch:
    return launch(
        engine,
        plan or AgentPlan(engine=engine.name, prompt="", command="true"),
        url="http://127.0.0.1:4100/",
        token=token,
        home=f"{root}/.gibil/agent/home",
        prompt_file=f"{root}/.gibil/agent/prompt",
        checkout=f"{root}/project",
    )


@pytest.mark.parametrize("name", ENGINES)
def test_the_token_is_in_the_environment_and_in_no_argument_script_or_repr(name: str) -> None:
    made = launched(ENGINES[name])
    assert TOKEN in made.job_environment({}).values()
    assert TOKEN not in made.script() + repr(made)
    assert not any(TOKEN in word for word in made.argv)
    assert not any("{" in text for text in (*made.argv, *made.environment.values()))


def test_what_an_engine_asks_for_by_itself_goes_to_the_same_model() -> None:
    plan = AgentPlan(engine="claude", prompt="", model="claude-opus-4-5[1m]", max_turns=7)
    made = launched(ENGINES["claude"], plan)
    assert made.argv[made.argv.index("--model") + 1 :][:3] == ("claude-opus-4-5[1m]", "--max-turns", "7")
    assert made.environment["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "claude-opus-4-5[1m]"
    settings = json.loads(launched(ENGINES["gemini"], plan).files[0].text)
    assert settings["model"] == {"maxSessionTurns": 7}
    assert {each["modelConfig"]["model"] for each in settings["modelConfigs"]["customOverrides"]} == {"claude-opus-4-5[1m]"}
    opencode = json.loads(launched(ENGINES["opencode"]).files[0].text)
    assert opencode["model"] == opencode["small_model"] == "gibil/claude-sonnet-4-5"


@pytest.mark.parametrize("model", ['m1"\nweb_search = "live', "-m", "m 1", "{token}"])
def test_a_model_that_would_change_a_configuration_file_is_rejected(model: str) -> None:
    with pytest.raises(UsageError, match="can't be a model's name"):
        launched(ENGINES["codex"], AgentPlan(engine="codex", prompt="", model=model))


def test_variables_of_earlier_tasks_do_not_lead_a_program_elsewhere() -> None:
    inherited = {
        "ANTHROPIC_AUTH_TOKEN": "x",
        "XDG_CONFIG_HOME": "/x",
        "CODEX_HOME": "/x",
        "HOME": "/x",
        "DATABASE_URL": "db",
        "PATH": "/bin",
    }
    environment = launched(ENGINES["codex"]).job_environment(inherited)
    assert environment.items() >= {"DATABASE_URL": "db", "PATH": "/bin", "CODEX_HOME": "/root/.gibil/agent/home/.codex"}.items()
    assert not environment.keys() & {"ANTHROPIC_AUTH_TOKEN", "XDG_CONFIG_HOME", "HOME"}


def test_a_command_needs_a_program_and_gets_no_model_variables_without_a_model() -> None:
    with pytest.raises(UsageError, match="needs the key 'command'"):
        launched(ENGINES["command"], AgentPlan(engine="command", prompt=""))
    assert "GIBIL_MODEL_KEY" not in launched(ENGINES["command"], token="").environment


def test_the_program_starts_in_the_checkout_with_a_new_home_that_has_the_machines_tools_and_no_settings_of_agents(
    tmp_path: Path,
) -> None:
    old = tmp_path / "root"
    for folder in (
        "project",
        ".cargo/bin",
        ".claude",
        ".config/opencode",
        ".config/pip",
        ".local/share/opencode",
        ".local/share/uv",
    ):
        (old / folder).mkdir(parents=True)
    for file in (".npmrc", ".claude.json", ".foo/left", ".gibil/agent/home/left"):
        (old / file).parent.mkdir(parents=True, exist_ok=True)
        (old / file).write_text("from an earlier task")
    prompt = old / ".gibil/agent/prompt"
    prompt.write_text("Do it.\n")
    command = (
        'read -r line; echo "$line $PWD $HOME"; cd; find . | sort; cat .foo/config; echo; stat -c %a .foo/config .; '
        "env | grep -c GIBIL_AGENT || true"
    )
    engine = Engine(name="x", title="X", files={".foo/config": "key={token}\n%s"})
    made = replace(launched(engine, AgentPlan(engine="x", prompt="", command=command), root=str(old)), old_home=str(old))
    for _ in range(2):  # a second round replaces what the first one left
        done = subprocess.run(
            ["sh", "-c", made.script()],
            env=made.job_environment({"PATH": "/usr/bin:/bin"}),
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (done.returncode, done.stderr) == (0, "")
    home = old / ".gibil/agent/home"
    first, *names = done.stdout.splitlines()
    assert first == f"Do it. {old / 'project'} {home}"
    assert [name for name in names if name.startswith(".")] == [
        ".", "./.cargo", "./.config", "./.config/pip", "./.foo", "./.foo/config",
        "./.local", "./.local/share", "./.local/share/uv", "./.npmrc",
    ]  # fmt: skip
    assert names[-5:] == [f"key={TOKEN}", "%s", "600", "700", "0"]
    assert (home / ".cargo").readlink() == old / ".cargo"
    assert (old / ".foo/left").exists()


def test_a_prompt_that_does_not_exist_is_named(tmp_path: Path) -> None:
    made = launched(ENGINES["command"], root=str(tmp_path))
    done = subprocess.run(["sh", "-c", made.script()], env=made.job_environment({}), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"gibil: the prompt {tmp_path}/.gibil/agent/prompt doesn't exist\n")


def published(registry: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Publish a package in a folder that is read as npm's registry; return its digest."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    tarball = registry / f"{name.replace('/', '-')}-{version}.tgz"
    tarball.write_bytes(content.getvalue())
    digest = "sha512-" + base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
    (registry / name).mkdir(parents=True)
    manifest = {"name": name, "version": version, "dist": {"integrity": digest, "tarball": tarball.as_uri()}}
    (registry / name / version).write_text(json.dumps(manifest))
    return digest


def installed(engine: Engine, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = install_script(engine).replace(FOLDER, str(tmp_path / "engines"))
    environment = {"PATH": "/usr/bin:/bin", "NPM_CONFIG_REGISTRY": (tmp_path / "registry").as_uri()}
    return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=20)


@needs("curl")
def test_an_engine_is_installed_once_at_its_version_and_with_its_digest(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    program = "#!/bin/sh\necho helper 1.2.3 $1\n"
    digests = {
        arch: published(registry, f"@example/helper-{arch}", "1.2.3", {"bin/helper": program}) for arch in ("x64", "arm64")
    }
    package = Package(registry="npm", name="@example/helper-{arch}", version="1.2.3", folder="helper", integrity=digests)
    engine = Engine(name="helper", title="Helper", packages=(package,), program="helper/bin/helper")
    path = tmp_path / "engines/helper/bin/helper"
    done = installed(engine, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(f"gibil: Helper 1.2.3: helper 1.2.3 --version, [0-9]+ MB \\({path}\\)\n", done.stdout)
    assert installed(engine, tmp_path).stdout == f"gibil: Helper 1.2.3 is installed ({path})\n"

    changed = replace(engine, packages=(replace(package, integrity=dict.fromkeys(digests, digests["x64"][:-6] + "AAAA==")),))
    done = installed(changed, tmp_path)
    assert done.returncode == 1
    assert "gibil: package.tgz: wrong checksum (sha512), it isn't the published file\n" in done.stderr
    assert not path.exists()
    absent = replace(engine, packages=(replace(package, version="1.2.4"),))
    done = installed(absent, tmp_path)
    assert done.returncode == 1
    assert "Helper 1.2.4 isn't available; gibil looked at npm's @example/helper-" in done.stderr


@needs("curl")
def test_a_program_that_does_not_run_on_the_machine_fails_when_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    published(tmp_path / "registry", "helper", "1.2.3", {"helper": "#!/bin/sh\necho wrong processor >&2; exit 1\n"})
    package = Package(registry="npm", name="helper", version="1.2.3", folder="helper")
    done = installed(Engine(name="helper", title="Helper", packages=(package,), program="helper/helper"), tmp_path)
    assert done.returncode == 1
    assert done.stderr == "wrong processor\ngibil: Helper 1.2.3 is installed, but doesn't run on this machine; see above\n"


def test_the_task_that_installs_an_engine_is_a_part_of_the_preparation() -> None:
    task = install_task(ENGINES["claude"])
    assert task is not None
    assert (task.kind, task.name, task.shell) == ("prepare", "install Claude Code", "sh")
    assert install_task(ENGINES["command"]) is None
