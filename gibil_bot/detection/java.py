"""Java and Kotlin: Maven and Gradle, with their wrappers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gibil_bot.detection import ci_hints, version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown

_GRADLE = ("build.gradle.kts", "build.gradle", "settings.gradle.kts", "settings.gradle")
WANTED = (
    "pom.xml",
    *_GRADLE,
    "gradle.properties",
    "gradle/libs.versions.toml",
    ".java-version",
    ".sdkmanrc",
    *version_files.WANTED,
    *ci_hints.WANTED,
    "*/build.gradle.kts",
    "*/build.gradle",
)

LTS = (17, 21, 11, 8, 25)
"""Major versions in the order in which they are chosen: those named by `release` and the like are floors, and newer releases of
Java run the bytecode of older ones."""
_MAJOR = re.compile(r"(?:^|[^\d.])(?:1\.)?(\d{1,2})(?:\.[\d.+]+)?(?![\d.])")
_FLOORS = re.compile(
    r"<(?:maven\.compiler\.(?:release|testRelease|target|source|testTarget)|java\.version|jdk\.version|release|target|source)>"
    r"\s*(?:1\.)?(\d{1,2})\s*<"
)
_GRADLE_FLOORS = re.compile(
    r"(?:sourceCompatibility|targetCompatibility|options\.release(?:\.set)?|jvmTarget)\s*[=(]?\s*"
    r"(?:JavaVersion\.VERSION_|JvmTarget\.JVM_|[\"'])?(?:1[._])?(\d{1,2})"
)
_TOOLCHAIN = re.compile(r"JavaLanguageVersion\.of\(\s*[\"']?(\d{1,2})|jvmToolchain\(\s*(\d{1,2})")
_ENFORCED = re.compile(r"<requireJavaVersion>.{0,2000}?<version>\s*([\[(]?[\d.,\s]+[\])]?)\s*</version>", re.DOTALL)
_SKIPS = re.compile(r"-DskipTests|-Dmaven\.test\.skip|-x test\b")


def facts(project: Project) -> Facts | None:
    tests: list[Candidate] = []
    tools: list[Runtime] = []
    steps: list[Step] = []
    caches: list[str] = []
    if project.has("pom.xml"):
        tests.append(_maven(project))
        steps.append(_resolve(project))
        tools += [] if project.has("mvnw") else [Runtime(name="maven", evidence=Evidence(path="pom.xml"))]
        caches.append("~/.m2/repository")
    gradle = project.first(*_GRADLE)
    if gradle:
        tests.append(_gradle(project, gradle))
        if not steps:
            steps.append(_configure(project, gradle))
        tools += [] if project.has("gradlew") else [Runtime(name="gradle", evidence=Evidence(path=gradle))]
        caches += ["~/.gradle/caches", "~/.gradle/wrapper"]
    if not tests:
        return None
    runtimes = (_java(project), *tools)
    return Facts(ecosystem="Java", runtimes=runtimes, steps=tuple(steps), tests=tuple(tests), caches=tuple(caches))


def _resolve(project: Project) -> Step:
    """Return the step that downloads what Maven needs. `go-offline` fails for some projects whose tests pass."""
    program = "sh ./mvnw" if project.has("mvnw") else "mvn"
    offline = f"{program} -B -ntp dependency:go-offline"
    inputs = [path for path in sorted(project.paths) if path.rsplit("/", 1)[-1] == "pom.xml" or path.startswith(".mvn/")]
    run = f"{offline} || {program} -B -ntp -q dependency:help >/dev/null"
    return Step(run=run, shown=offline, short=offline, evidence=Evidence(path="pom.xml"), inputs=tuple(inputs[:100]))


def _configure(project: Project, manifest: str) -> Step:
    """Return the step that downloads Gradle and its plugins. The dependencies follow when something is compiled."""
    run = f"{'sh ./gradlew' if project.has('gradlew') else 'gradle'} --no-daemon --quiet help"
    inputs = [path for path in sorted(project.paths) if path.endswith((".gradle", ".gradle.kts", "gradle-wrapper.properties"))]
    inputs += project.present(("gradle.properties", "gradle/libs.versions.toml"))
    return Step(run=run, evidence=Evidence(path=manifest), inputs=tuple(inputs[:100]))


def _maven(project: Project) -> Candidate:
    program, needs = ("sh ./mvnw", ("java",)) if project.has("mvnw") else ("mvn", ("mvn",))
    phase, evidence = "test", project.evidence("pom.xml", "<modules>") if project.line_of("pom.xml", "<modules>") else None
    for command in ci_hints.commands(project):
        if re.match(r"(sh )?(\./)?mvnw? ", command.run) and not _SKIPS.search(command.run) and not command.folder:
            phases = [word for word in command.run.split() if word in ("verify", "test", "install", "package")]
            if phases:
                phase, evidence = ("verify" if phases[-1] in ("install", "verify") else "test"), command.evidence()
                break
    return Candidate(
        run=f"{program} -B -ntp {phase}",
        evidence=evidence or Evidence(path="pom.xml"),
        needs=needs,
        rank=50,
    )


def _gradle(project: Project, manifest: str) -> Candidate:
    program, needs = ("sh ./gradlew", ("java",)) if project.has("gradlew") else ("gradle", ("gradle",))
    for command in ci_hints.commands(project):
        if re.match(r"(sh )?(\./)?gradlew? ", command.run) and not _SKIPS.search(command.run) and not command.folder:
            tasks = [word for word in command.run.split() if word in ("check", "test", "build")]
            if tasks:
                task = "test" if "test" in tasks else "check"
                return Candidate(run=f"{program} --no-daemon {task}", evidence=command.evidence(), needs=needs, rank=50)
    return Candidate(run=f"{program} --no-daemon test", evidence=Evidence(path=manifest), needs=needs, rank=50)


def _java(project: Project) -> Runtime:
    for text, where in _pins(project):
        if pin := _MAJOR.search(text):
            return Runtime(name="java", version=pin[1], evidence=where)
    floor, evidence = _floor(project)
    allowed = [major for major in LTS if major >= floor and _enforced(project, major)]
    for text, where in ci_hints.versions(project, "setup-java", "java-version"):
        named = _MAJOR.search(text)
        if named and int(named[1]) in allowed and not _tests_with(project, allowed[0]):
            return Runtime(name="java", version=named[1], evidence=where)
    if not floor or not allowed:
        return Runtime(name="java", evidence=evidence)
    accepts = tuple(
        str(major) for major in range(allowed[0] + 1, 26 if project.has("pom.xml") else 22) if _enforced(project, major)
    )
    return Runtime(name="java", version=str(allowed[0]), accepts=accepts, evidence=evidence)


def _tests_with(project: Project, major: int) -> bool:
    tested = {
        found[1] for text, _ in ci_hints.versions(project, "setup-java", "java-version") if (found := _MAJOR.search(text))
    }
    return not tested or str(major) in tested


def _pins(project: Project) -> Iterator[tuple[str, Evidence]]:
    if pin := version_files.first_line(project, ".java-version"):
        yield pin
    for number, line in short_lines(project, ".sdkmanrc"):
        if line.startswith("java="):
            yield line.removeprefix("java="), Evidence(path=".sdkmanrc", line=number, text=shown(line))
    yield from version_files.pinned(project, "java")
    for path in _gradle_files(project):
        for number, line in short_lines(project, path):
            if found := _TOOLCHAIN.search(line):
                yield found[1] or found[2], Evidence(path=path, line=number, text=shown(line))


def _gradle_files(project: Project) -> list[str]:
    nested = [path for pattern in ("*/build.gradle.kts", "*/build.gradle") for path in project.matching(pattern)]
    return [path for path in (*_GRADLE, *nested) if path in project.files]


def _floor(project: Project) -> tuple[int, Evidence]:
    """Return the oldest major version that can build the project; 0 if its files don't say."""
    best, evidence = 0, Evidence(path=project.first("pom.xml", *_GRADLE) or "pom.xml")
    for path, pattern in (("pom.xml", _FLOORS), *((path, _GRADLE_FLOORS) for path in _gradle_files(project))):
        for number, line in short_lines(project, path):
            for found in pattern.finditer(line):
                if best < int(found[1]) <= 30:
                    best, evidence = int(found[1]), Evidence(path=path, line=number, text=shown(line))
    return best, evidence


def _enforced(project: Project, major: int) -> bool:
    """Return whether Maven's enforcer plugin accepts a version of Java: `[17,22)`, or `17` as a floor."""
    found = _ENFORCED.search(project.text("pom.xml") or "")
    if found is None:
        return True
    bounds = [_MAJOR.search(part) for part in found[1].strip("[]() \t\n").split(",")]
    low, high = bounds[0], bounds[-1] if len(bounds) > 1 else None
    closed = found[1].strip().endswith("]")
    return (low is None or major >= int(low[1])) and (
        high is None or major < int(high[1]) or (closed and major == int(high[1]))
    )
