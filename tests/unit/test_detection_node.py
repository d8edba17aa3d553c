"""Node.js: the minimal manifests of real projects, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gibil_bot.detection import node
from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project

File = str | dict[str, Any]


def project(files: Mapping[str, File], *others: str) -> Project:
    contents = {path: (json.dumps(file, indent=2) if isinstance(file, dict) else file).encode() for path, file in files.items()}
    return Project(frozenset({*contents, *others}), contents)


def facts(files: Mapping[str, File], *others: str) -> Facts:
    found = node.facts(project(files, *others))
    assert found is not None
    return found


def runtime(found: Facts, name: str = "node") -> str:
    return next(each.version for each in found.runtimes if each.name == name)


def workflow(*runs: str, versions: str = "", job: str = "test") -> str:
    steps = [f"      - uses: actions/setup-node@v4\n        with:\n          node-version: {versions}\n"] if versions else []
    steps += [f"      - run: {run}\n" for run in runs]
    return f"on: push\njobs:\n  {job}:\n    runs-on: ubuntu-latest\n    steps:\n{''.join(steps)}"


CI = ".github/workflows/ci.yml"
MATRIX = """\
jobs:
  test:
    strategy:
      matrix:
        node-version: [18, 20, {newest}]
    steps:
      - uses: actions/setup-node@v4
        with:
          node-version: ${{{{ matrix.node-version }}}}
"""


@dataclass
class Case:
    """The manifests of one project, and the expected facts."""

    files: dict[str, File]
    node: str
    install: str
    test: str
    others: tuple[str, ...] = ()
    manager: tuple[str, str] | None = None
    env: dict[str, str] = field(default_factory=dict)


PROJECTS = {
    "npm without a lock file": Case(
        {
            "package.json": {
                "engines": {"node": "^12.17.0 || ^14.13 || >=16.0.0"},
                "scripts": {"test": "xo && c8 ava && tsd"},
                "devDependencies": {"ava": "^6"},
            },
            ".npmrc": "package-lock=false\n",
        },
        node="22",
        install="npm install --no-audit --no-fund",
        test="npm test",
    ),
    "npm with a lock file and a floor for Node": Case(
        {
            "package.json": {
                "engines": {"node": ">=22.12.0"},
                "scripts": {"test": "node --test"},
                "devDependencies": {"tsd": "1"},
            }
        },
        others=("package-lock.json",),
        node="22",
        install="npm ci --no-audit --no-fund",
        test="npm test",
    ),
    "npm workspaces without a test at the top": Case(
        {
            "package.json": {"workspaces": ["src/*"], "scripts": {"build": "npm run build --workspaces"}},
            "src/memory/package.json": {"name": "memory", "scripts": {"test": "vitest run"}},
            "src/time/package.json": {"name": "time", "scripts": {"build": "tsc"}},
        },
        others=("package-lock.json",),
        node="",
        install="npm ci --no-audit --no-fund",
        test="npm test --workspaces --if-present",
    ),
    "npm workspaces, one of which has only a placeholder": Case(
        {
            "package.json": {"workspaces": {"packages": ["packages/*"]}},
            "packages/a/package.json": {"scripts": {"test": "jest"}},
            "packages/b/package.json": {"scripts": {"test": 'echo "Error: no test specified" && exit 1'}},
        },
        others=("package-lock.json",),
        node="",
        install="npm ci --no-audit --no-fund",
        test="npm test --workspace=packages/a",
    ),
    "pnpm by packageManager": Case(
        {
            "package.json": {
                "packageManager": "pnpm@9.4.0",
                "scripts": {"test": "vitest run"},
                "devDependencies": {"vitest": "1"},
            },
            "pnpm-workspace.yaml": "packages:\n  - 'packages/*'\n",
            "pnpm-lock.yaml": "lockfileVersion: '9.0'\n",
            CI: workflow("pnpm install", versions="lts/*"),
        },
        node="24",
        manager=("pnpm", "9.4.0"),
        install="pnpm install --frozen-lockfile",
        test="pnpm run test",
    ),
    "pnpm 11, which needs Node 22 even if the package supports older ones": Case(
        {
            "package.json": {
                "packageManager": "pnpm@11.3.0+sha512.2c40",
                "engines": {"node": ">=12.20.0 <24"},
                "scripts": {"test": 'pnpm run "/^test:.*/"', "test:spec": "vitest run"},
                "devDependencies": {"vitest": "4"},
            },
        },
        others=("pnpm-lock.yaml", "package-lock.json"),
        node="22",
        manager=("pnpm", "11.3.0"),
        install="pnpm install --frozen-lockfile",
        test="pnpm run test",
    ),
    "pnpm by the lock file's format": Case(
        {"package.json": {"scripts": {"test": "jest"}}, "pnpm-lock.yaml": "lockfileVersion: 5.4\n"},
        node="",
        manager=("pnpm", "7"),
        install="pnpm install --frozen-lockfile",
        test="pnpm run test",
    ),
    "pnpm with settings that only pnpm 10 reads": Case(
        {
            "package.json": {"scripts": {"test": "jest"}},
            "pnpm-lock.yaml": "lockfileVersion: '9.0'\n",
            "pnpm-workspace.yaml": "packages: ['.']\nonlyBuiltDependencies: [esbuild]\n",
            ".nvmrc": "v22.19.0\n",
        },
        node="22.19.0",
        manager=("pnpm", "10"),
        install="pnpm install --frozen-lockfile",
        test="pnpm run test",
    ),
    "pnpm workspaces without a test at the top": Case(
        {
            "package.json": {"private": True},
            "pnpm-lock.yaml": "lockfileVersion: '6.0'\n",
            "pnpm-workspace.yaml": "packages:\n  - packages/**\n  - '!packages/old'\n",
            "packages/a/package.json": {"scripts": {"test": "vitest run"}},
            "packages/old/package.json": {"scripts": {"test": 'echo "no test specified"'}},
        },
        node="",
        manager=("pnpm", "8"),
        install="pnpm install --frozen-lockfile",
        test="pnpm -r --if-present test",
    ),
    "yarn classic": Case(
        {
            "package.json": {
                "scripts": {"test": "vitest run && yarn test:build", "test:build": "tsup"},
                "devDependencies": {"a": "1"},
            },
            "yarn.lock": "# THIS IS AN AUTOGENERATED FILE.\n# yarn lockfile v1\n\n\n",
            CI: workflow("yarn --frozen-lockfile", "yarn test", versions="24"),
        },
        node="24",
        manager=("yarn", "1"),
        install="yarn install --non-interactive --frozen-lockfile",
        test="yarn run test",
    ),
    "yarn berry that the repository carries": Case(
        {
            "package.json": {
                "packageManager": "yarn@4.4.1",
                "scripts": {"test": "vitest --run"},
                "devDependencies": {"a": "1"},
            },
            ".yarnrc.yml": "nodeLinker: node-modules\nyarnPath: .yarn/releases/yarn-4.4.1.cjs\n",
            "yarn.lock": "# This file\n\n__metadata:\n  version: 8\n",
        },
        others=(".yarn/releases/yarn-4.4.1.cjs",),
        node="",
        install="node .yarn/releases/yarn-4.4.1.cjs install --immutable",
        test="node .yarn/releases/yarn-4.4.1.cjs run test",
    ),
    "yarn berry by its lock file, workspaces without a test at the top": Case(
        {
            "package.json": {"workspaces": ["packages/*"]},
            "yarn.lock": "__metadata:\n  version: 8\n",
            "packages/a/package.json": {"scripts": {"test": "jest"}},
        },
        node="",
        manager=("yarn", "4"),
        install="yarn install --immutable",
        test="yarn workspaces foreach -A run test",
    ),
    "bun without a script": Case(
        {"package.json": {"devDependencies": {"@types/bun": "1"}}},
        others=("bun.lock", "math.test.ts"),
        node="",
        manager=("bun", ""),
        install="bun install --frozen-lockfile",
        test="bun test",
    ),
    "a test runner without a script": Case(
        {"package.json": {"devDependencies": {"vitest": "3"}, "volta": {"node": "20.11.1"}}},
        node="20.11.1",
        install="npm install --no-audit --no-fund",
        test="npx vitest run",
    ),
    "a test script that watches, next to one that doesn't": Case(
        {"package.json": {"scripts": {"test": "jest --watch", "test:ci": "jest --ci"}, "devDependencies": {"jest": "29"}}},
        node="",
        install="npm install --no-audit --no-fund",
        test="npm run test:ci",
    ),
    "no dependencies at all": Case(
        {"package.json": {"scripts": {"test": "bin/bats test"}}, CI: workflow("npm pack ./", versions="v18.20.2")},
        node="",
        install="",
        test="npm test",
    ),
    "devEngines": Case(
        {
            "package.json": {
                "devEngines": {
                    "runtime": {"name": "node", "version": "^20.9.0"},
                    "packageManager": [{"name": "pnpm", "version": "^8.6.0"}],
                },
                "scripts": {"test": "jest"},
                "dependencies": {"a": "1"},
            }
        },
        node="20",
        manager=("pnpm", "8"),
        install="pnpm install --no-frozen-lockfile",
        test="pnpm run test",
    ),
}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_is_installed_and_tested_by_its_own_manager(name: str) -> None:
    case = PROJECTS[name]
    found = facts(case.files, *case.others)
    assert runtime(found) == case.node
    assert [step.shown or step.run for step in found.steps] == ([case.install] if case.install else [])
    assert [(each.shown or each.run) for each in found.tests] == [case.test]
    managers = [(each.name, each.version) for each in found.runtimes if each.name != "node"]
    assert managers == ([case.manager] if case.manager else [])


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({".nvmrc": "lts/jod\n"}, "22"),
        ({".nvmrc": "lts/*"}, "24"),
        ({".nvmrc": "node"}, ""),
        ({".nvmrc": "# why\n20\n"}, "20"),
        ({".nvmrc": "$(id)\n"}, ""),
        ({".node-version": "v20.1\n"}, "20.1"),
        ({".tool-versions": "python 3.12\nnodejs 22.3.0 # here\n"}, "22.3.0"),
        ({"mise.toml": '[tools]\nnode = "20"\n'}, "20"),
        ({"mise.toml": '[tools]\nnode = { version = "lts" }\n'}, "24"),
        ({"mise.toml": '[tools]\nnode = ["22", "20"]\n'}, "22"),
        ({".nvmrc": "22", ".node-version": "20"}, "22"),
    ],
)
def test_node_is_the_version_that_a_version_file_names(files: dict[str, File], version: str) -> None:
    assert runtime(facts({"package.json": {"scripts": {"test": "x"}}, **files})) == version


@pytest.mark.parametrize(
    ("engines", "newest", "version"),
    [
        (">= 18", 22, "22"),  # the CI confirms the usual choice
        (">= 18", 24, "24"),  # the CI doesn't test with 22
        (">= 18 < 21", 24, "20"),
        ("", 24, "24"),
        ("latest", 22, "22"),
        ("~22.3.1", 22, "22.3"),
    ],
)
def test_the_ci_decides_what_a_range_leaves_open(engines: str, newest: int, version: str) -> None:
    manifest = {"engines": {"node": engines}, "scripts": {"test": "x"}, "dependencies": {"a": "1"}}
    found = facts({"package.json": manifest, CI: MATRIX.format(newest=newest)})
    assert runtime(found) == version


@pytest.mark.parametrize(
    ("engines", "newest", "accepted"),
    [
        (">= 18", 22, ("20", "18")),  # what the CI tests with
        (">= 20", 22, ("20",)),
        (">= 12", None, ("24", "20", "26", "25", "23", "21")),  # what is maintained
        ("~22.3.1", None, ()),
        ("", 22, ()),
    ],
)
def test_a_machine_may_have_another_version_that_the_range_and_the_ci_allow(
    engines: str, newest: int | None, accepted: tuple[str, ...]
) -> None:
    files: dict[str, File] = {
        "package.json": {"engines": {"node": engines}, "scripts": {"test": "x"}, "dependencies": {"a": "1"}}
    }
    if newest is not None:
        files[CI] = MATRIX.format(newest=newest)
    assert facts(files).runtimes[0].accepts == accepted


def test_flags_of_npm_are_taken_from_the_ci_if_all_its_installs_have_them() -> None:
    manifest: File = {"scripts": {"test": "x"}, "dependencies": {"a": "1"}}
    found = facts({"package.json": manifest, CI: workflow("npm install --ignore-scripts", "npm i --ignore-scripts --no-save")})
    assert found.steps[0].shown == "npm install --no-audit --no-fund --ignore-scripts"
    found = facts({"package.json": manifest, CI: workflow("npm install --ignore-scripts", "npm install")})
    assert found.steps[0].shown == "npm install --no-audit --no-fund"
    found = facts({"package.json": manifest, CI: workflow("npm install --registry=http://evil.example --legacy-peer-deps")})
    assert found.steps[0].shown == "npm install --no-audit --no-fund --legacy-peer-deps"


def test_a_lock_file_that_the_ci_ignores_is_not_enforced() -> None:
    manifest: File = {"scripts": {"test": "x"}, "dependencies": {"a": "1"}}
    found = facts({"package.json": manifest, CI: workflow("npm install", "npm test")}, "package-lock.json")
    assert found.steps[0].shown == "npm install --no-audit --no-fund"
    assert found.steps[0].evidence.line is not None


def test_the_build_comes_first_if_every_job_that_tests_builds_first() -> None:
    manifest: File = {"scripts": {"test": "vitest run", "build": "tsc"}, "dependencies": {"a": "1"}}
    found = facts({"package.json": manifest, CI: workflow("npm ci", "npm run build", "npm test")}, "package-lock.json")
    assert found.tests[0].run == 'npm run build && npm test -- "$@"'
    assert ".github/workflows/ci.yml" in str(found.tests[0].evidence)
    other = workflow("npm test", job="quick").removeprefix("on: push\njobs:\n")
    found = facts({"package.json": manifest, CI: workflow("npm run build", "npm test") + other}, "package-lock.json")
    assert found.tests[0].run == 'npm test -- "$@"'


@pytest.mark.parametrize("script", ["prepare", "pretest", "postinstall"])
def test_a_build_that_happens_anyway_is_not_repeated(script: str) -> None:
    manifest: File = {"scripts": {"test": "vitest run", "build": "tsc", script: "npm run build"}}
    found = facts({"package.json": manifest, CI: workflow("npm run build", "npm test")})
    assert found.tests[0].run == 'npm test -- "$@"'


def test_scripts_that_need_a_browser_are_left_out_only_on_a_machine_without_one() -> None:
    scripts = {
        "test": "npm run test:node && npm run test:browser && npm run lint",
        "test:node": "mocha test.js",
        "test:browser": "karma start --single-run",
        "lint": "xo",
    }
    whole, rest = facts({"package.json": {"scripts": scripts}}).tests
    assert whole.run == 'npm test -- "$@"'
    assert "chromium" in whole.check
    assert rest.run == 'npm run test:node && npm run lint -- "$@"'
    assert whole.rank < rest.rank
    assert "without test:browser" in rest.evidence.text


def test_a_browser_that_the_tests_dont_use_isnt_downloaded() -> None:
    manifest: dict[str, Any] = {"devDependencies": {"cypress": "13"}, "scripts": {"test": "jest"}}
    assert facts({"package.json": manifest}).env["CYPRESS_INSTALL_BINARY"] == "0"
    manifest["scripts"] = {"test": "cypress run"}
    assert "CYPRESS_INSTALL_BINARY" not in facts({"package.json": manifest}).env


def test_the_environment_is_only_what_the_manager_needs() -> None:
    assert facts({"package.json": {}}).env == {}
    assert facts({"package.json": {"packageManager": "pnpm@9.1.0"}}).env == {"COREPACK_ENABLE_DOWNLOAD_PROMPT": "0"}


def test_another_manager_that_a_script_calls_is_installed_if_possible() -> None:
    scripts = {"test": "yarn build && jest", "build": "tsc", "release": "pnpm publish"}
    found = facts({"package.json": {"scripts": scripts, "dependencies": {"a": "1"}}}, "package-lock.json")
    assert [(each.name, each.optional) for each in found.runtimes] == [("node", False), ("yarn", True)]


@pytest.mark.parametrize(
    ("script", "chosen"),
    [
        ("mocha test -w", "npm run test:ci"),
        ("tsc && jest --watchAll", "npm run test:ci"),
        ("vitest dev", "npm run test:ci"),
        ("npm test -w packages/a", "npm test"),
        ("jest --watch=false", "npm test"),
        ("jest --watchman", "npm test"),
        ("vitest", "npm test"),
    ],
)
def test_a_script_that_waits_for_changes_isnt_run(script: str, chosen: str) -> None:
    found = facts({"package.json": {"scripts": {"test": script, "test:ci": "jest --ci"}}})
    assert found.tests[0].shown == chosen


def test_a_package_json_of_another_language_is_left_alone_unless_it_tests_or_lints() -> None:
    manifest: File = {"devDependencies": {"sass": "1"}}
    assert node.facts(project({"package.json": manifest}, "pyproject.toml")) is None
    assert node.facts(project({"package.json": manifest}, "pyproject.toml", "Makefile")) is not None
    assert node.facts(project({"package.json": {"scripts": {"lint": "eslint ."}}}, "pyproject.toml")) is not None


def test_dependencies_are_installed_again_when_a_workspace_changes() -> None:
    files: dict[str, File] = {
        "package.json": {"workspaces": ["./packages/*/"]},
        "packages/a/package.json": {"scripts": {"test": "jest"}},
        "packages/a/node_modules/b/package.json": {},
        "other/package.json": {},
    }
    found = facts(files, "package-lock.json", ".npmrc")
    assert found.steps[0].inputs == ("package.json", "package-lock.json", ".npmrc", "packages/a/package.json")


def test_names_from_the_repository_reach_the_shell_only_in_quotes() -> None:
    files: dict[str, File] = {
        "package.json": {"workspaces": ["*"]},
        "$(touch x);/package.json": {"scripts": {"test": "jest"}},
        "b/package.json": {"scripts": {"test": "no test specified"}},
    }
    run = facts(files).tests[0].run
    assert run == "npm test --workspace='$(touch x);' -- \"$@\""
    files = {
        "package.json": {"scripts": {"test": "x"}},
        ".yarnrc.yml": "yarnPath: '.yarn/$(id).cjs'",
        "yarn.lock": "__metadata:\n",
    }
    assert facts(files, ".yarn/$(id).cjs").tests[0].run == "node '.yarn/$(id).cjs' run test"
    assert facts(files).tests[0].run == "yarn run test"


@pytest.mark.parametrize(
    ("runs", "scripts", "command"),
    [
        (
            ["npm run build:check", "npm run build:test", "npm test -- -i"],
            {"build:test": "tsc", "build:check": "tsc"},
            "build:test",
        ),
        (["npm run build --if-present", "npm test"], {"build": "tsc"}, "build"),
        (["node ./tools/build.js -t ${{ matrix.how }}", "npm test"], {"build": "node ./tools/build.js -t node"}, "build"),
        (["npm run build:docs", "npm test"], {"build:docs": "typedoc"}, ""),
        (["npm run build", "npm test"], {"build": "tsc", "prepare": "npm run build"}, ""),
    ],
)
def test_what_the_ci_builds_before_the_tests_is_built(runs: list[str], scripts: dict[str, str], command: str) -> None:
    found = facts({"package.json": {"scripts": {"test": "jest", **scripts}}, CI: workflow(*runs)})
    assert found.tests[0].shown == (f"npm run {command} && npm test" if command else "npm test")


@pytest.mark.parametrize(
    ("runs", "scripts", "command"),
    [
        (["pnpm run test:node"], {"test": "cd packages/a && npm test"}, "npm run test:node"),
        (["npm run test:node", "npm run lint"], {"test": "npm run test:node && npm run lint"}, "npm test"),
        (["npm run test:node"], {"test": "npm run lint && npm run test:node"}, "npm run test:node"),
        (["npm run test:node", "npm test"], {"test": "npm run lint && npm run test:node"}, "npm test"),
        (["npm run test:node"], {"test": "npm run build && npm run test:node", "build": "tsc"}, "npm test"),
        (["npm run test:node"], {"test": "npm run test:all", "test:all": "npm run test:node -s && karma"}, "npm test"),
        (["npm run test:node"], {"test": 'pnpm run "/^test:.*/"'}, "npm test"),
        (["npm run test:node"], {"test": "run-s -c test:*"}, "npm test"),
        (["npm run test:node"], {"test": "run-p test:node lint"}, "npm test"),
        (["npm run test:node"], {"test": "concurrently 'npm:test:*'"}, "npm test"),
        (["npm run test:node", "npm test"], {"test": "jest"}, "npm test"),
        (["npm run test:browser"], {"test": "jest"}, "npm test"),
        (["npm run test-ci"], {"test": "jest", "test-ci": "FULL=1 npm test"}, "npm test"),
        (
            ["pnpm test:services:start", "pnpm build", "pnpm test:ci", "pnpm test:services:stop"],
            {"test": "pnpm -r test", "test:services:start": "sh start.sh", "test:ci": "pnpm -r test:ci", "build": "tsc"},
            "npm run build && npm run test:ci",
        ),
    ],
)
def test_the_script_that_the_ci_runs_in_place_of_all_tests_is_run(
    runs: list[str], scripts: dict[str, str], command: str
) -> None:
    others = {"test:node": "mocha", "test:browser": "karma start", "lint": "eslint ."}
    found = facts({"package.json": {"scripts": {**others, **scripts}}, CI: workflow(*runs)})
    assert found.tests[0].shown == command


@pytest.mark.parametrize(
    ("after", "command"),
    [
        ("npx npm@'>=10.2' audit --production", "npm run tests-only"),
        ("aud --production", "npm run tests-only"),
        ("npm run lint", "npm test"),
    ],
)
def test_an_audit_of_dependencies_isnt_a_test(after: str, command: str) -> None:
    scripts = {"pretest": "npm run lint", "test": "npm run tests-only", "tests-only": "tape 'test/**/*.js'", "posttest": after}
    shared = (
        "jobs:\n  tests:\n    uses: ljharb/actions/.github/workflows/node.yml@main\n"
        "    with:\n      range: '>= 20'\n      command: npm run tests-only\n"
    )
    found = facts({"package.json": {"scripts": scripts}, ".github/workflows/node-twenties.yml": shared})
    assert found.tests[0].shown == command


def test_hooks_that_the_ci_leaves_out_dont_run() -> None:
    files: dict[str, File] = {"package.json": {"scripts": {"test": "tap", "posttest": "npm run lint", "lint": "eslint ."}}}
    assert facts({**files, CI: workflow("npm test --ignore-scripts")}).tests[0].shown == "npm test --ignore-scripts"
    assert facts({**files, CI: workflow("npm test --ignore-scripts", "npm test")}).tests[0].shown == "npm test"


def test_a_manager_that_only_benchmarks_call_isnt_installed() -> None:
    scripts = {"test": "vitest run", "bench:bun": "bun run bench.ts"}
    assert [each.name for each in facts({"package.json": {"scripts": scripts}}).runtimes] == ["node"]


def test_a_pnpm_that_cant_read_the_lock_file_isnt_chosen() -> None:
    old = "      - uses: pnpm/action-setup@v5\n        with: {version: 3}\n"
    new = "      - uses: pnpm/setup@v2\n        with: {version: 11}\n"
    ci = f"jobs:\n  old:\n    steps:\n{old}      - run: pnpm run old\n  full:\n    steps:\n{new}      - run: pnpm test\n"
    files: dict[str, File] = {
        "package.json": {"scripts": {"test": "uvu"}},
        "pnpm-lock.yaml": "lockfileVersion: '9.0'\n",
        CI: ci,
    }
    assert runtime(facts(files), "pnpm") == "11"


@pytest.mark.parametrize(
    ("manifest", "ci", "step"),
    [
        ({"devDependencies": {"playwright": "1"}}, "npx playwright install --with-deps", "npx playwright install --with-deps"),
        (
            {"devDependencies": {"playwright": "1"}},
            "npx playwright install firefox",
            "npx playwright install --with-deps firefox",
        ),
        (
            {"devDependencies": {"@playwright/test": "1"}},
            "./node_modules/.bin/playwright install --with-deps chromium",
            "npx playwright install --with-deps chromium",
        ),
        ({"devDependencies": {"playwright": "1"}}, "npx --yes playwright install", "npx playwright install --with-deps"),
        ({"devDependencies": {"playwright": "1"}}, "npm test", ""),
        ({"devDependencies": {"puppeteer": "24"}}, "npm test", "apt-get install chromium"),
        ({"devDependencies": {"karma-chrome-launcher": "3"}}, "npm test", ""),
        (
            {"devDependencies": {"karma-chrome-launcher": "3"}, "scripts": {"test": "karma start"}},
            "",
            "apt-get install chromium",
        ),
    ],
)
def test_a_browser_is_installed_for_tests_that_use_one(manifest: dict[str, Any], ci: str, step: str) -> None:
    found = facts({"package.json": {"scripts": {"test": "ava"}, **manifest}, CI: workflow(ci or "true")})
    assert [each.shown for each in found.steps[1:]] == ([step] if step else [])


def test_browsers_that_a_prepare_script_downloads_cant_fail_the_installation() -> None:
    scripts = {"prepare": "husky && npm run browsers", "browsers": "playwright install chromium", "test": "vitest run"}
    found = facts({"package.json": {"scripts": scripts, "devDependencies": {"playwright": "1"}}})
    assert found.env["PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD"] == "1"
    assert found.steps[1].shown == "npx playwright install --with-deps chromium"


def test_tests_are_told_apart_by_what_opens_a_browser() -> None:
    scripts = {
        "test": "npm run test:node && npm run test:browserless && npm run test:slim && npm run test:chrome",
        "test:node": "mocha",
        "test:browserless": "runner -b jsdom",
        "test:slim": "npm run test:unit -- --headless",
        "test:chrome": "runner",
    }
    _, rest = facts({"package.json": {"scripts": scripts}}).tests
    assert rest.shown == "npm run test:node && npm run test:browserless"


def test_requests_to_a_host_out_of_reach_arent_repeated_for_a_minute() -> None:
    step = facts({"package.json": {"dependencies": {"a": "1"}}}).steps[0]
    assert step.run == f"npm_config_fetch_retry_mintimeout=1000 npm_config_fetch_retry_maxtimeout=5000 {step.shown}"
    assert step.short == step.shown


def test_a_workflow_that_lints_and_tests_says_with_which_version() -> None:
    def chosen(name: str) -> str:
        files: dict[str, File] = {"package.json": {"engines": {"node": ">=20"}}, name: workflow("npm test", versions="24")}
        return runtime(facts(files))

    assert chosen(".github/workflows/lint-test.yml") == "24"
    assert chosen(".github/workflows/lint.yml") != "24"
