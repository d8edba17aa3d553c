"""Ruby: Bundler, with RSpec, Rails, or tasks of Rake."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gibil_bot.detection import ci_hints, linters, version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown

WANTED = (
    "Gemfile",
    "Gemfile.lock",
    "Rakefile",
    "rakefile",
    "*.gemspec",
    ".ruby-version",
    ".rspec",
    *version_files.WANTED,
    *ci_hints.WANTED,
)

_VERSION = re.compile(r"(?:ruby-)?(\d{1,4}(?:\.\d{1,4}){1,2})(?:-p\d+)?")
_IN_GEMFILE = re.compile(r"^\s*ruby\s*\(?\s*[\"'](~>\s*)?(\d{1,4}(?:\.\d{1,4}){1,2})[\"']\s*\)?\s*$")
_RAKE_TEST = re.compile(
    r"^\s*(?:Rake::TestTask\.new|Minitest::TestTask\.create|(?:Rails::)?TestTask\.new)\b(?:\s*\(?\s*[:\"']([\w:]+))?|"
    r"^\s*task\s*\(?\s*[:\"']?(test|spec)\b(?!\"?:? *(?:=>)? *[\"'][^\"']*\.)"
)
_LIBRARIES = {
    "pg": "libpq-dev",
    "mysql2": "default-libmysqlclient-dev",
    "sqlite3": "libsqlite3-dev",
    "charlock_holmes": "libicu-dev",
    "rugged": "cmake",
    "curb": "libcurl4-openssl-dev",
    "ruby-vips": "libvips42",
    "ffi": "libffi-dev",
    "rmagick": "libmagickwand-dev",
}
_NATIVE = ("build-essential", "ruby-dev", "bundler", "libyaml-dev", "libffi-dev", "libssl-dev", "zlib1g-dev", "pkg-config")
"""What native extensions of the most used gems are compiled with."""


def facts(project: Project) -> Facts | None:
    manifests = [path for path in ("Gemfile", "Gemfile.lock", *project.matching("*.gemspec")) if path in project.paths]
    if not manifests or manifests == ["Gemfile.lock"]:
        return None
    gems = _gems(project, manifests)
    steps: tuple[Step, ...] = ()
    if project.has("Gemfile"):
        evidence = Evidence(path="Gemfile.lock" if project.has("Gemfile.lock") else "Gemfile")
        steps = (Step(run='bundle install --jobs "$(nproc)" --retry 3', evidence=evidence, inputs=tuple(manifests)),)
    packages = [*_NATIVE, *(_LIBRARIES[gem] for gem in sorted(gems & _LIBRARIES.keys()))]
    return Facts(
        ecosystem="Ruby",
        runtimes=(_ruby(project, manifests[0]),),
        steps=steps,
        tests=tuple(_tests(project, gems, bundled=bool(steps))),
        linters=linters.ruby(project),
        packages=tuple(dict.fromkeys(packages)) if steps else (),
        env={"BUNDLE_SILENCE_ROOT_WARNING": "1"},
        caches=("~/.bundle/cache",),
    )


def _ruby(project: Project, manifest: str) -> Runtime:
    for text, evidence in _pins(project):
        if found := _VERSION.fullmatch(text):
            return Runtime(name="ruby", version=found[1], evidence=evidence)
    for number, line in short_lines(project, "Gemfile"):
        if found := _IN_GEMFILE.match(line.split("#")[0]):
            parts = found[2].split(".")
            version = ".".join(parts[: max(2, len(parts) - 1)] if found[1] and len(parts) > 2 else parts)
            return Runtime(name="ruby", version=version, evidence=Evidence(path="Gemfile", line=number, text=shown(line)))
    return Runtime(name="ruby", version="", evidence=Evidence(path=manifest))


def _pins(project: Project) -> Iterator[tuple[str, Evidence]]:
    if found := version_files.first_line(project, ".ruby-version"):
        yield found
    yield from version_files.pinned(project, "ruby")


def _gems(project: Project, manifests: list[str]) -> set[str]:
    """Return the names of the gems that the manifests mention."""
    found: set[str] = set()
    for path in manifests:
        text = project.text(path) or ""
        found.update(re.findall(r"^[ \t]{0,40}gem[ \t]{0,9}\(?[ \t]{0,9}[\"']([\w.-]+)[\"']", text, re.MULTILINE))
        found.update(re.findall(r"\.add_(?:development_|runtime_)?dependency[ \t]{0,9}\(?[ \t]{0,9}[\"']([\w.-]+)[\"']", text))
        if path == "Gemfile.lock":
            found.update(re.findall(r"^ {4}([\w.-]+) \(", text, re.MULTILINE))
    return found


def _tests(project: Project, gems: set[str], *, bundled: bool) -> Iterator[Candidate]:
    prefix, needs = ("bundle exec ", ("bundle",)) if bundled else ("", ("ruby",))
    specs = any(path.startswith("spec/") and path.endswith("_spec.rb") for path in project.paths)
    if specs and (project.has(".rspec", "spec/spec_helper.rb") or any(gem.startswith("rspec") for gem in gems)):
        path = project.first(".rspec", "spec/spec_helper.rb") or "Gemfile"
        yield Candidate(run=f"{prefix}rspec", evidence=Evidence(path=path), needs=needs, rank=34)
    if project.has("bin/rails") and any(path.startswith("test/") and path.endswith("_test.rb") for path in project.paths):
        yield Candidate(run="bin/rails test", evidence=Evidence(path="bin/rails"), needs=("ruby",), rank=35)
    rakefile = project.first("Rakefile", "rakefile")
    if rakefile:
        for command in ci_hints.commands(project):
            if not command.folder and re.fullmatch(r"(bundle exec )?rake( (default|test|spec))?", command.run):
                run = f"{prefix}{command.run.removeprefix('bundle exec ')}"
                yield Candidate(run=run, evidence=command.evidence(), needs=needs, rank=35)
                return
        for number, line in short_lines(project, rakefile):
            if found := _RAKE_TEST.match(line):
                task = found[1] or found[2] or "test"
                run = f"{prefix}rake {task}"
                yield Candidate(run=run, evidence=Evidence(path=rakefile, line=number, text=shown(line)), needs=needs, rank=35)
                return
    if not project.has("bin/rails") and any(path.startswith("test/") and path.endswith("_test.rb") for path in project.paths):
        program = 'ruby -Ilib -Itest -e \'Dir["test/**/*_test.rb"].sort.each { |file| require "./#{file}" }\' --'
        yield Candidate(run=f"{prefix}{program}", evidence=Evidence(path="test"), needs=needs, rank=60)
