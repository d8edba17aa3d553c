"""Node.js: package.json, its package manager by `packageManager` or lock file, workspaces, and bun."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from gibil_bot.detection import ci_hints, formatters, linters, version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.languages import MAKE, is_only
from gibil_bot.detection.project import Project
from gibil_bot.detection.semver import parse_range
from gibil_bot.detection.values import items, quoted, shown, string, table
from gibil_bot.scripts.templates import text as script_text

_LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
WANTED = (
    "package.json",
    ".nvmrc",
    ".node-version",
    ".yarnrc.yml",
    "pnpm-workspace.yaml",
    *version_files.WANTED,
    *ci_hints.WANTED,
    "pnpm-lock.yaml",
    "yarn.lock",
    "*/package.json",
    "*/*/package.json",
)

LTS = (22, 24, 20, 18)
"""Major versions with long-term support in the order in which they are chosen from a range. A range like `>=12` says what the
package's users may have; its development tools want a version that is still maintained."""
_SHORT_TERM = (26, 25, 23, 21)
_MAINTAINED = 20
"""A machine's older version isn't taken for a range, unless the project's CI tests with it."""
_CODENAMES = {"hydrogen": "18", "iron": "20", "jod": "22", "krypton": "24"}
_NEWEST_LTS = "24"
_PNPM_OF_LOCK = {"5.3": "6", "5.4": "7", "6": "8", "9": "9"}
_PNPM_ONLY_NODE_22 = 11
"""The first major version of pnpm that needs Node.js 22."""
_LOCK_FORMAT = re.compile(r"lockfileVersion:\s{0,9}'?(\d\.\d)'?\s{0,9}")
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,2}")
_NO_TEST = re.compile(r"no test specified")
_TESTS_OTHERWISE = (
    "test:ci",
    "test-ci",
    "test:run",
    "test:unit",
    "test:node",
    "unit",
    "tests",
    "spec",
    "vitest",
    "jest",
    "mocha",
)
_WATCHES = re.compile(
    r"\s--watch(All)?(?![\w=:-])|\b(mocha|tsc|jest|vitest|ava)\b[^&|;]{0,200}\s-w(?![\w=:-])|\bvitest (watch|dev)\b"
)
_BROWSER = re.compile(
    r"\b(karma|wdio|cypress|testcafe|testem|web-test-runner|wtr|nightwatch|playwright|puppeteer)\b(?! install)|ChromeHeadless|"
    r"\s--headless\b|\bvitest\b[^&|;]{0,200}\s--browser\b"
)
_HAS_BROWSER = (
    'test -n "${CHROME_BIN:-}" || command -v google-chrome chromium chromium-browser firefox >/dev/null || '
    "test -d ~/.cache/ms-playwright"
)
_BROWSER_NAME = re.compile(r"(?:^|[:_-])(?:browsers?|chrome|firefox|karma|playwright|puppeteer|selenium|wdio)(?:$|[:_-])")
_CHROME = ("karma-chrome-launcher", "puppeteer", "testem")
_PLAYWRIGHT = (
    "playwright",
    "@playwright/test",
    "playwright-chromium",
    "@web/test-runner-playwright",
    "@vitest/browser-playwright",
)
_INSTALLED_ON_INSTALL = re.compile(r"\bplaywright install((?: [a-z-]+){0,9})")
_PLAYWRIGHT_INSTALL = re.compile(
    r"(?:(?:npx|npm exec|pnpm exec|pnpm dlx|pnpm|pnpx|yarn|yarn dlx|bunx|bun x)(?: --?[a-z]*)* |(?:\./)?node_modules/\.bin/)?"
    r"playwright install((?: [a-z-]+)*)"
)
_CALL = re.compile(r"(?:npm|pnpm|yarn|bun)(?: run| run-script)? (\w[\w:.-]*)(?= |$)")
_RUNS_SEVERAL = re.compile(r"\b(npm-run-all2?|run-s|run-p)\b")
_CALLS_BY_PATTERN = re.compile(r"/\^([\w:-]+)\.\*\$?/|(?<![\w./])([\w-]+:)\*")
"""`pnpm run "/^test:.*/"`, `run-s test:*`, `concurrently "npm:test:*"`"""
_CALLS = re.compile(r"\b(?:npm|pnpm|yarn|bun)(?: run| run-script)? (\w[\w:.-]*)(?= |$)")
_TEST = ("test", "t", "tst")
"""npm's names of the script `test`."""
_LINTS = re.compile(r"(?:^|[:_-])(lint|eslint|format|fmt|prettier|style|standard|xo|biome|knip|spell)")
_AUDITS = re.compile(r"\b(npm(@\S+)?|pnpm|yarn|aud) (npm )?audit\b|\baud\b")
"""What asks the registry for known vulnerabilities, which says nothing about a change."""
_NO_PART = r"(?![\w:-]*[:-](?:start|stop|up|down|setup|teardown|services|prepare)\b)"
"""Names of scripts that only serve the tests."""
_TEST_NAME = re.compile(rf"tests?[:-](?!browser|e2e){_NO_PART}[\w:-]+")
_RUNNERS = (
    ("vitest", "npx vitest run"), ("jest", "npx jest"), ("ava", "npx ava"), ("mocha", "npx mocha"), ("tap", "npx tap"),
    ("jasmine", "npx jasmine"), ("uvu", "npx uvu"), ("tape", "npx tape 'test/**/*.js'"),
)  # fmt: skip
_RETRIES = "npm_config_fetch_retry_mintimeout=1000 npm_config_fetch_retry_maxtimeout=5000"
"""npm and pnpm wait 10 and 60 seconds before they repeat a request, also to a host that the machine can't reach."""
_INSTALL_FLAGS = ("--legacy-peer-deps", "--force", "--ignore-scripts")
_BUILDS = re.compile(
    r"(?:npm|pnpm|yarn|bun)(?: run| run-script)?(?: --if-present)? "
    r"((?:build|compile|bootstrap|codegen|generate)"
    r"(?![:-](?:docs?|site|website|check|size|types?)\b)(?:[:-][\w:-]+)?)(?: --if-present)?"
)
_DEPENDENCIES = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies")
_ON_INSTALL = ("preinstall", "install", "postinstall", "prepare")
_MOST_WORKSPACES = 100


@dataclass(frozen=True, slots=True)
class Manager:
    """A package manager, and the commands of its that a project needs."""

    name: str
    version: str
    evidence: Evidence
    lock: str = ""
    program: str = ""
    """How it is called: `pnpm`, or `node .yarn/releases/yarn-4.4.1.cjs`."""

    @property
    def berry(self) -> bool:
        return self.name == "yarn" and not self.version.startswith("1")

    def script(self, name: str, *, arguments: bool = False) -> str:
        """Return the command that runs a script of package.json. With `arguments`: more can be appended for the script."""
        if self.name == "npm":
            command = "npm test" if name == "test" else f"npm run {shlex.quote(name)}"
            return f'{command} -- "$@"' if arguments else command
        return f"{self.program} run {shlex.quote(name)}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.program.split()[0],)


def facts(project: Project) -> Facts | None:
    if not project.has("package.json"):
        return None
    manifest = project.json("package.json")
    manager = package_manager(project, manifest)
    tests = _tests(project, manifest, manager)
    found_linters = linters.node(project, manifest, manager)
    if not tests and not found_linters and not is_only(project, "package.json") and not project.has(*MAKE):
        # another language's project, which has package.json for tools that neither test nor lint it
        return None
    steps = (*_steps(project, manifest, manager), *_browsers(project, manifest, manager))
    node = _node(project, manifest, manager, prepares=bool(steps))
    runtimes = [node]
    if manager.name != "npm" and manager.program == manager.name:
        runtimes.append(Runtime(name=manager.name, version=manager.version, evidence=manager.evidence))
    runtimes += _called(project, manifest, manager)
    return Facts(
        ecosystem="Node.js",
        runtimes=tuple(runtimes),
        steps=steps,
        tests=tests,
        linters=found_linters,
        formatters=formatters.node(project, manifest, manager),
        env=_environment(manifest, manager),
        caches=_caches(manager),
        problems=tuple(problem for path in ("package.json", "pnpm-workspace.yaml") if (problem := project.problems.get(path))),
    )


def _called(project: Project, manifest: dict[str, Any], manager: Manager) -> Iterator[Runtime]:
    """Yield other package managers that the scripts call which install, test or lint."""
    scripts = {name: text for name, text in table(manifest.get("scripts")).items() if isinstance(text, str)}
    for name in ("pnpm", "yarn", "bun"):
        for script, text in _reached(scripts).items():
            if name != manager.name and re.search(rf"(^|&& *|; *){name} (?!add|publish)", text):
                words = f"{shown(script)}: {shown(text)}"
                yield Runtime(name=name, optional=True, evidence=project.evidence("package.json", f'"{script}"', words))
                break


def _reached(scripts: dict[str, str]) -> dict[str, str]:
    """Return the scripts that run when the project is installed, built, tested or linted, and those that these call."""
    begin = re.compile(rf"(pre|post)?(test|build|lint|unit|check)([:-].*)?|{'|'.join(_ON_INSTALL)}")
    found = {name: text for name, text in scripts.items() if begin.fullmatch(name)}
    waiting = list(found.values())
    while waiting:
        words = set(re.findall(r"[\w:-]+", waiting.pop()))
        called = {name: text for name, text in scripts.items() if name in words and name not in found}
        found |= called
        waiting += called.values()
    return found


# Which Node.js


def _node(project: Project, manifest: dict[str, Any], manager: Manager, *, prepares: bool) -> Runtime:
    for text, evidence in _pins(project, manifest):
        if version := _pinned(text):
            return Runtime(name="node", version=version, evidence=evidence)
    lowest = 22 if _needs_node_22(manager) else 0
    majors = [major for major in LTS if major >= lowest]
    tested = {major: where for major, where in _tested_majors(project).items() if major >= lowest}
    wanted, evidence = _range(project, manifest)
    allowed = parse_range(wanted)
    if allowed is None or allowed.any_version:
        if prepares and tested:
            # without a range, a version that only one job needs would be taken for one that all tests pass with
            chosen, where = next(iter(tested.items()))
            return Runtime(name="node", version=str(chosen), evidence=where)
        return Runtime(name="node", version="22" if lowest else "", evidence=manager.evidence if lowest else evidence)
    fitting = [major for major in tested if allowed.first_major([major])]
    if fitting and majors[0] not in fitting:
        return _chosen(str(fitting[0]), fitting, tested[fitting[0]])
    version = allowed.prefix(majors)
    others = fitting or [
        major for major in (*LTS, *_SHORT_TERM) if major >= max(lowest, _MAINTAINED) and allowed.first_major([major])
    ]
    return _chosen(version, others if "." not in version else [], evidence)


def _chosen(version: str, others: list[int], evidence: Evidence) -> Runtime:
    accepts = tuple(str(each) for each in others if str(each) != version)
    return Runtime(name="node", version=version, accepts=accepts, evidence=evidence)


def _pins(project: Project, manifest: dict[str, Any]) -> Iterator[tuple[str, Evidence]]:
    """Yield what names one version, the most specific file first."""
    for path in (".nvmrc", ".node-version"):
        if found := version_files.first_line(project, path):
            yield found
    yield from version_files.pinned(project, "node", "nodejs")
    if pin := string(table(manifest.get("volta")).get("node")):
        yield pin, project.evidence("package.json", '"volta"', f"volta.node {shown(pin)}")


def _pinned(text: str) -> str:
    """Return the version; empty for what means the newest, and for what isn't a version."""
    text = text.casefold().removeprefix("node-").removeprefix("v").removesuffix(".x").removesuffix(".x")
    if text in ("lts", "lts/*", "lts/-0"):
        return _NEWEST_LTS
    return text if _VERSION.fullmatch(text) else _CODENAMES.get(text.removeprefix("lts/"), "")


def _range(project: Project, manifest: dict[str, Any]) -> tuple[str, Evidence]:
    for entry in items(table(manifest.get("devEngines")).get("runtime")):
        if string(table(entry).get("name")) == "node" and (text := string(table(entry).get("version"))):
            return text, project.evidence("package.json", '"devEngines"', f"devEngines.runtime {shown(text)}")
    text = string(table(manifest.get("engines")).get("node"))
    return text, project.evidence("package.json", '"engines"', f"engines.node {shown(text)}" if text else "")


def _tested_majors(project: Project) -> dict[int, Evidence]:
    """Return the major versions that the project's CI tests with, in the order in which they are chosen."""
    found: dict[int, Evidence] = {}
    for text, evidence in ci_hints.versions(project, "setup-node", "node-version"):
        version = _pinned(text)
        allowed = parse_range(version or text)
        major = (version or (allowed.first_major(LTS) if allowed else "")).split(".")[0]
        if major:
            found.setdefault(int(major), evidence)
    return {major: found[major] for major in LTS if major in found}


def _needs_node_22(manager: Manager) -> bool:
    major = manager.version.split(".")[0]
    return manager.name == "pnpm" and major.isdecimal() and int(major) >= _PNPM_ONLY_NODE_22


# Which package manager


def package_manager(project: Project, manifest: dict[str, Any]) -> Manager:
    manager = _declared(project, manifest) or _by_lock(project) or _by_ci(project)
    if manager is None:
        manager = Manager("npm", "", project.evidence("package.json"))
    manager = replace(manager, program=manager.program or manager.name, lock=_lock(project, manager.name))
    if manager.name == "yarn":
        path = string(project.yaml(".yarnrc.yml").get("yarnPath")).removeprefix("./")
        if path and path in project.paths:
            evidence = project.evidence(".yarnrc.yml", "yarnPath", f"yarnPath {shown(path)}")
            version = found[0] if (found := _VERSION.search(path.rsplit("/", 1)[-1])) else manager.version
            return replace(manager, program=f"node {quoted(path)}", version=version, evidence=evidence)
    return manager


def _declared(project: Project, manifest: dict[str, Any]) -> Manager | None:
    text = string(manifest.get("packageManager"))
    if match := re.fullmatch(r"(npm|pnpm|yarn|bun)@(\d{1,6}(?:\.\d{1,6}){0,2})(?:[-+].*)?", text):
        return Manager(
            match[1], match[2], project.evidence("package.json", '"packageManager"', f"packageManager {match[1]}@{match[2]}")
        )
    for entry in items(table(manifest.get("devEngines")).get("packageManager")):
        name = string(table(entry).get("name"))
        if name in ("npm", "pnpm", "yarn", "bun"):
            wanted = string(table(entry).get("version"))
            allowed = parse_range(wanted)
            majors = {"pnpm": (10, 9, 11, 8, 7), "yarn": (4, 1, 3), "npm": (), "bun": (1,)}[name]
            version = allowed.prefix(majors) if allowed and wanted else ""
            return Manager(name, version, project.evidence("package.json", '"devEngines"', f"devEngines.packageManager {name}"))
    return None


def _by_lock(project: Project) -> Manager | None:
    if project.has("pnpm-lock.yaml"):
        return Manager("pnpm", *_pnpm(project))
    if project.has("yarn.lock"):
        classic = not re.search(r"^__metadata:", project.text("yarn.lock") or "", re.MULTILINE) and not project.has(
            ".yarnrc.yml"
        )
        return Manager("yarn", "1" if classic else "4", project.evidence("yarn.lock", "" if classic else "__metadata"))
    if lock := project.first("bun.lock", "bun.lockb"):
        return Manager("bun", "", project.evidence(lock))
    if lock := project.first(*_LOCKS):
        return Manager("npm", "", project.evidence(lock))
    if project.has("pnpm-workspace.yaml"):
        return Manager("pnpm", "10", project.evidence("pnpm-workspace.yaml"))
    return None


def _pnpm(project: Project) -> tuple[str, Evidence]:
    """Return the version of pnpm by its lock file's format, and the evidence."""
    lock, line = next(
        (
            (found[1], number)
            for number, text in islice(project.lines("pnpm-lock.yaml"), 20)
            if (found := _LOCK_FORMAT.fullmatch(text))
        ),
        ("", None),
    )
    oldest = _PNPM_OF_LOCK.get(lock) or _PNPM_OF_LOCK.get(lock[:1], "")
    for text, where in ci_hints.versions(project, "pnpm/", "version"):
        # a job for old versions of Node uses a pnpm that can't read the lock file
        if (found := _VERSION.match(text)) and int(found[0].split(".")[0]) >= int(oldest or 0):
            return found[0], where
    settings = set(project.yaml("pnpm-workspace.yaml")) - {"packages", "catalog", "catalogs"}
    if settings:
        # only pnpm 10 and later read settings there; the lock file's format didn't change
        return "10", project.evidence("pnpm-workspace.yaml", sorted(settings)[0], "settings of pnpm 10")
    return oldest, Evidence(path="pnpm-lock.yaml", line=line, text=f"lockfileVersion {lock}" if lock else "")


def _by_ci(project: Project) -> Manager | None:
    """Return the manager that the CI installs with, if the project keeps no lock file."""
    for command in ci_hints.commands(project):
        if found := re.match(r"(pnpm|yarn|bun) (install|i|ci)\b", command.run):
            version = {"pnpm": "10", "yarn": "1", "bun": ""}[found[1]]
            return Manager(found[1], version, command.evidence())
        if re.match(r"npm (ci|install|i)\b", command.run):
            return None
    return None


def _lock(project: Project, name: str) -> str:
    locks = {"npm": _LOCKS, "pnpm": ("pnpm-lock.yaml",), "yarn": ("yarn.lock",), "bun": ("bun.lock", "bun.lockb")}
    return project.first(*locks[name]) or ""


# How dependencies are installed


def _steps(project: Project, manifest: dict[str, Any], manager: Manager) -> tuple[Step, ...]:
    scripts = table(manifest.get("scripts"))
    depends = any(table(manifest.get(key)) for key in _DEPENDENCIES) or _workspace_globs(project, manifest)
    if not (depends or manager.lock or any(name in scripts for name in _ON_INSTALL)):
        return ()
    run, evidence = _install(project, manager)
    others = ("package.json", manager.lock, ".npmrc", ".yarnrc", ".yarnrc.yml", "pnpm-workspace.yaml", ".pnpmfile.cjs")
    inputs = [path for path in others if path in project.paths] + _workspaces(project, manifest)
    quick = f"{_RETRIES} {run}" if manager.name in ("npm", "pnpm") else run
    return (Step(run=quick, shown=run, short=run, evidence=evidence, inputs=tuple(dict.fromkeys(inputs))),)


def _install(project: Project, manager: Manager) -> tuple[str, Evidence]:
    where = Evidence(path=manager.lock) if manager.lock else Evidence(path="package.json")
    frozen = bool(manager.lock)
    match manager.name:
        case "pnpm":
            return "pnpm install --frozen-lockfile" if frozen else "pnpm install --no-frozen-lockfile", where
        case "yarn" if manager.berry:
            return f"{manager.program} install --immutable" if frozen else f"{manager.program} install --no-immutable", where
        case "yarn":
            command = f"{manager.program} install --non-interactive"
            return f"{command} --frozen-lockfile" if frozen else command, where
        case "bun":
            return "bun install --frozen-lockfile" if frozen else "bun install", where
        case _:
            return _npm_install(project, frozen=frozen, where=where)


def _npm_install(project: Project, *, frozen: bool, where: Evidence) -> tuple[str, Evidence]:
    installs = [command for command in ci_hints.commands(project) if re.match(r"npm (ci|install|i)\b(?! +[^-\s])", command.run)]
    verb = "ci" if frozen else "install"
    if frozen and installs and not any(command.run.startswith("npm ci") for command in installs):
        verb, where = "install", installs[0].evidence()
    words = [set(command.run.split()) for command in installs]
    flags = [flag for flag in _INSTALL_FLAGS if words and all(flag in each for each in words)]
    return " ".join(["npm", verb, "--no-audit", "--no-fund", *flags]), where


def _browsers(project: Project, manifest: dict[str, Any], manager: Manager) -> Iterator[Step]:
    """Yield the step that makes a browser available for the tests that use one."""
    depends = {**table(manifest.get("dependencies")), **table(manifest.get("devDependencies"))}
    scripts = _scripts(manifest)
    name = _test_script(scripts)
    if name is None:
        return
    if any(package in depends for package in _PLAYWRIGHT):
        if found := _INSTALLED_ON_INSTALL.search(_on_install(scripts)):
            names = [word for word in found[1].split() if not word.startswith("-")]
            yield _playwright(manager, project.evidence("package.json", found[0], found[0]), names)
            return
        for command in ci_hints.commands(project):
            if found := _PLAYWRIGHT_INSTALL.fullmatch(command.run):
                names = [word for word in found[1].split() if not word.startswith("-")]
                yield _playwright(manager, command.evidence(), names)
                return
        package = next(package for package in _PLAYWRIGHT if package in depends)
        if _uses_browser(scripts, name):
            yield _playwright(manager, project.evidence("package.json", f'"{package}"', package), [])
            return
    package = next((package for package in _CHROME if package in depends), "")
    if package and (package == "puppeteer" or _uses_browser(scripts, name)):
        evidence = project.evidence("package.json", f'"{package}"', package)
        run = f"{script_text('detect_browser')}chromium"
        yield Step(run=run, shown="apt-get install chromium", short="apt-get install -y chromium", evidence=evidence)


def _on_install(scripts: dict[str, str]) -> str:
    """Return the text of the scripts that run when the project is installed."""
    names = {name for hook in _ON_INSTALL if hook in scripts for name in (hook, *_called_by(scripts, hook))}
    return "\n".join(scripts[name] for name in sorted(names))


def _playwright(manager: Manager, evidence: Evidence, browsers: list[str]) -> Step:
    program = {"pnpm": "pnpm exec playwright", "bun": "bunx playwright"}.get(manager.name, "npx playwright")
    if manager.name == "yarn":
        program = f"{manager.program} run playwright"
    words = " ".join(browsers)
    run = f"{script_text('detect_browser')}playwright {program} -- {words}".rstrip()
    short = f"{program} install --with-deps {words}".rstrip()
    return Step(run=run, shown=short, short=short, evidence=evidence)


# Workspaces


def _workspace_globs(project: Project, manifest: dict[str, Any]) -> list[str]:
    declared = manifest.get("workspaces")
    globs = items(declared.get("packages")) if isinstance(declared, dict) else items(declared)
    globs = [*globs, *items(project.yaml("pnpm-workspace.yaml").get("packages"))]
    return [glob for glob in (string(each).removeprefix("./").rstrip("/") for each in globs) if glob][:_MOST_WORKSPACES]


def _workspaces(project: Project, manifest: dict[str, Any]) -> list[str]:
    """Return the package.json files of the workspaces, sorted."""
    globs = _workspace_globs(project, manifest)
    left_out = [glob[1:] for glob in globs if glob.startswith("!")]
    found = []
    for path in sorted(project.paths):
        folder, _, name = path.rpartition("/")
        included = name == "package.json" and "node_modules" not in folder and any(_in_glob(folder, glob) for glob in globs)
        if included and not any(_in_glob(folder, glob) for glob in left_out):
            found.append(path)
    return found[:_MOST_WORKSPACES]


def _in_glob(folder: str, glob: str) -> bool:
    if "**" in glob:
        return fnmatchcase(folder, glob.replace("**", "*"))
    return folder.count("/") == glob.count("/") and fnmatchcase(folder, glob)


# The test command


def _tests(project: Project, manifest: dict[str, Any], manager: Manager) -> tuple[Candidate, ...]:
    scripts = _scripts(manifest)
    name = _test_script(scripts)
    if name is None:
        found = _workspace_tests(project, manifest, manager) or _by_runner(project, manifest, manager)
    else:
        found = _by_script(project, scripts, name, manager)
    build = _build_first(project, scripts, name or "test", manager)
    if build is not None:
        command, where = build
        found = [
            replace(
                each,
                run=f"{command} && {each.run}",
                evidence=replace(each.evidence, text=f"{each.evidence.text}; {where.path}: {where.text} before"),
            )
            for each in found
        ]
    return tuple(replace(each, shown=each.run.replace(' -- "$@"', "")) for each in found)


def _scripts(manifest: dict[str, Any]) -> dict[str, str]:
    return {name: text for name, text in table(manifest.get("scripts")).items() if isinstance(text, str) and name.isprintable()}


def _test_script(scripts: dict[str, str]) -> str | None:
    """Return the name of the script that tests once and ends."""

    def tests(name: str) -> bool:
        return bool(scripts.get(name, "").strip()) and not _NO_TEST.search(scripts[name])

    if tests("test") and not _WATCHES.search(scripts["test"]):
        return "test"
    return next((name for name in (*_TESTS_OTHERWISE, "test") if tests(name)), None)


def _script_evidence(project: Project, scripts: dict[str, str], name: str) -> Evidence:
    return project.evidence("package.json", f'"{name}"', f"{name}: {shown(scripts[name])}")


def _by_script(project: Project, scripts: dict[str, str], name: str, manager: Manager) -> list[Candidate]:

    def running(script: str, evidence: Evidence) -> Candidate:
        return Candidate(run=manager.script(script, arguments=True), evidence=evidence, needs=manager.needs, rank=30)

    if tested := _ci_script(project, scripts, name):
        return [running(*tested)]
    if name == "test" and manager.name == "npm" and (plain := _without_hooks(project)):
        return [Candidate(run='npm test --ignore-scripts -- "$@"', evidence=plain, needs=manager.needs, rank=30)]
    if tested := _without_linters(project, scripts, name):
        return [running(*tested)]
    evidence = _script_evidence(project, scripts, name)
    whole = running(name, evidence)
    parts = _parts(scripts, name)
    with_browser = [part for part in parts if _uses_browser(scripts, part)]
    others = [part for part in parts if part not in with_browser]
    if not with_browser or not others:
        return [whole]
    commands = [manager.script(part) for part in others[:-1]] + [manager.script(others[-1], arguments=True)]
    without = replace(evidence, text=f"{evidence.text}; without {', '.join(with_browser)}: this machine has no browser")
    return [
        replace(whole, check=_HAS_BROWSER),
        Candidate(run=" && ".join(commands), evidence=without, needs=manager.needs, rank=31),
    ]


def _without_hooks(project: Project) -> Evidence | None:
    """Return the CI's command if it always tests without `pretest` and `posttest`, which lint there, for example."""
    runs = [each for each in ci_hints.commands(project) if re.match(r"npm (run )?(test|t|tst)(?=\s|$)", each.run)]
    return runs[0].evidence() if runs and all("--ignore-scripts" in each.run.split() for each in runs) else None


def _ci_script(project: Project, scripts: dict[str, str], test: str) -> tuple[str, Evidence] | None:
    """Return the test script that the CI runs if it never runs `test`, which then does more than the CI can.

    A script that `test` calls counts only if `test` also audits the dependencies.
    """
    if test != "test":
        return None
    parts = _called_by(scripts, test)
    audits = bool(_AUDITS.search(scripts.get("posttest", "")))
    chosen: tuple[str, Evidence] | None = None
    for command in ci_hints.commands(project):
        called = _CALL.match(command.run)
        if called is None or command.folder:
            continue
        name = called[1]
        if name in _TEST or (name in parts and not audits):
            return None
        if chosen is None and name in scripts and _TEST_NAME.fullmatch(name) and "test" not in _called_by(scripts, name):
            chosen = name, command.evidence()
    return chosen


def _without_linters(project: Project, scripts: dict[str, str], test: str) -> tuple[str, Evidence] | None:
    """Return the script of `test` that tests if the others lint, and the CI's jobs that test leave those out: a job that lints
    may install more.
    """
    parts = _parts(scripts, test)
    linters = [part for part in parts if _LINTS.search(part)]
    tests = [part for part in parts if part not in linters]
    if not linters or len(tests) != 1:
        return None
    jobs: dict[str, set[str]] = {}
    found: Evidence | None = None
    for command in ci_hints.commands(project):
        if (called := _CALL.match(command.run)) and not command.folder:
            jobs.setdefault(command.job, set()).add(called[1])
            found = found or (command.evidence() if called[1] == tests[0] else None)
    ran = set().union(*(names for names in jobs.values() if tests[0] in names))
    return (tests[0], found) if found and not ran & {*_TEST, *linters} else None


def _called_by(scripts: dict[str, str], name: str) -> set[str]:
    """Return the scripts that a script calls, directly or not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        text = scripts.get(waiting.pop(), "")
        called = {each[1] for each in _CALLS.finditer(text)} & scripts.keys()
        if _RUNS_SEVERAL.search(text):
            called |= set(re.split(r"[\s\"']+", text)) & scripts.keys()
        beginnings = tuple(each[1] or each[2] for each in _CALLS_BY_PATTERN.finditer(text))
        if beginnings:
            called |= {each for each in scripts if each.startswith(beginnings)}
        waiting += called - found
        found |= called
    return found


def _parts(scripts: dict[str, str], name: str) -> list[str]:
    """Return the scripts that a script runs one after another; empty if it does anything else."""
    found = []
    for part in scripts[name].split("&&"):
        called = re.fullmatch(r"\s*(?:npm|pnpm|yarn|bun)(?: run| run-script)? (\w[\w:.-]*)\s*", part)
        if called is None or called[1] not in scripts or called[1] == name:
            return []
        found.append(called[1])
    return found


def _uses_browser(scripts: dict[str, str], name: str) -> bool:
    if _BROWSER_NAME.search(name):
        return True
    return any(_BROWSER.search(scripts[each]) for each in (name, *_parts(scripts, name), *_called_by(scripts, name)))


def _workspace_tests(project: Project, manifest: dict[str, Any], manager: Manager) -> list[Candidate]:
    folders, unfit = [], False
    for path in _workspaces(project, manifest):
        script = string(table(project.json(path).get("scripts")).get("test"))
        if script and not _NO_TEST.search(script):
            folders.append(path.rpartition("/")[0])
        elif script:
            unfit = True
    if not folders:
        return []
    match manager.name:
        case "npm" if unfit:
            command = "npm test " + " ".join(f"--workspace={quoted(folder)}" for folder in folders) + ' -- "$@"'
        case "npm":
            command = 'npm test --workspaces --if-present -- "$@"'
        case "pnpm":
            filters = "".join(f" --filter={quoted('./' + folder)}" for folder in folders) if unfit else " -r"
            command = f"pnpm{filters} --if-present test"
        case "yarn" if manager.berry:
            included = "".join(f" --include={quoted(folder)}" for folder in folders) if unfit else ""
            command = f"{manager.program} workspaces foreach -A{included} run test"
        case "bun":
            command = "bun run --filter '*' test"
        case _:
            runs = [f"{manager.program} --cwd {quoted(folder)} run test" for folder in folders]
            command = " && ".join(runs)
    evidence = project.evidence("package.json", '"workspaces"', f"workspaces; {len(folders)} of them have a test script")
    if not manifest.get("workspaces"):
        evidence = project.evidence("pnpm-workspace.yaml", "packages", evidence.text)
    return [Candidate(run=command, evidence=evidence, needs=manager.needs, rank=30)]


def _by_runner(project: Project, manifest: dict[str, Any], manager: Manager) -> list[Candidate]:
    """Return the command of a test runner that package.json installs without a script for it."""
    if manager.name == "bun":
        return [Candidate(run="bun test", evidence=manager.evidence, needs=("bun",), rank=50)]
    depends = {**table(manifest.get("dependencies")), **table(manifest.get("devDependencies"))}
    for name, command in _RUNNERS:
        if name in depends:
            return [
                Candidate(run=command, evidence=project.evidence("package.json", f'"{name}"', name), needs=("npx",), rank=50)
            ]
    own = re.compile(r"(test|tests)/[^/]+\.(js|mjs|cjs)|[^/]+\.test\.(js|mjs|cjs)")
    path = next((path for path in sorted(project.paths) if own.fullmatch(path)), None)
    if path and not depends:
        return [Candidate(run="node --test", evidence=Evidence(path=path), needs=("node",), rank=60)]
    return []


def _build_script(scripts: dict[str, str], command: str) -> str:
    """Return the build script that a command runs, or whose text it begins with; empty if there is none."""
    if (found := _BUILDS.fullmatch(command)) and found[1] in scripts:
        return found[1]
    begin = command.partition("${{")[0].strip()
    if not begin.startswith("node "):
        return ""
    return next((name for name in scripts if name.startswith("build") and f"{scripts[name]} ".startswith(f"{begin} ")), "")


def _build_first(project: Project, scripts: dict[str, str], test: str, manager: Manager) -> tuple[str, Evidence] | None:
    """Return the builds that every job of the CI runs before the tests, unless installing or testing runs them anyway."""
    tested = re.compile(
        rf"(npm|pnpm|yarn|bun)( run| run-script)? ({re.escape(test)}|test({_NO_PART}[:-][\w:-]+)?|t|unit)(?![\w:-])"
    )
    built: dict[str, dict[str, ci_hints.Command]] = {}
    wanted: dict[str, ci_hints.Command] = {}
    for command in ci_hints.commands(project):
        if command.folder:
            continue
        if name := _build_script(scripts, command.run):
            built.setdefault(command.job, {}).setdefault(name, command)
        elif tested.match(command.run):
            if command.job not in built:
                return None
            wanted = wanted or dict(built[command.job])
    anyway = " ".join(scripts.get(key, "") for key in (test, f"pre{test}", *_ON_INSTALL))
    needed = {
        name: where for name, where in wanted.items() if not re.search(rf"(?<![\w:-]){re.escape(name)}(?![\w:-])", anyway)
    }
    if not needed:
        return None
    return " && ".join(manager.script(name) for name in needed), next(iter(needed.values())).evidence()


# Environment


def _environment(manifest: dict[str, Any], manager: Manager) -> dict[str, str]:
    # a machine may have corepack's programs in place of the managers themselves
    env = {"COREPACK_ENABLE_DOWNLOAD_PROMPT": "0"} if manager.name in ("pnpm", "yarn") else {}
    if manager.berry:
        env["YARN_ENABLE_TELEMETRY"] = "0"
    depends = {**table(manifest.get("dependencies")), **table(manifest.get("devDependencies"))}
    if _INSTALLED_ON_INSTALL.search(_on_install(_scripts(manifest))):
        env["PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD"] = "1"  # a later step downloads them
    if "puppeteer" in depends:
        # its own Chrome comes from a server that machines often can't reach, and a failure fails the installation
        env["PUPPETEER_SKIP_DOWNLOAD"] = "1"
    if "cypress" in depends and not re.search(r"\bcypress\b", string(table(manifest.get("scripts")).get("test"))):
        # the download is large, from a server that machines often can't reach, and a failure fails the installation
        env["CYPRESS_INSTALL_BINARY"] = "0"
    return env


def _caches(manager: Manager) -> tuple[str, ...]:
    match manager.name:
        case "pnpm":
            return ("~/.local/share/pnpm/store",)
        case "yarn":
            return ("~/.yarn/berry/cache",) if manager.berry else ("~/.cache/yarn",)
        case "bun":
            return ("~/.bun/install/cache",)
        case _:
            return ("~/.npm",)
