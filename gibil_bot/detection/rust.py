"""Rust: Cargo packages and workspaces."""

from __future__ import annotations

import re

from gibil_bot.detection import ci_hints, formatters, linters, version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.languages import LAST_RESORT, is_only, short_lines
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown, string, table

WANTED = ("Cargo.toml", "rust-toolchain.toml", "rust-toolchain", *version_files.WANTED, *ci_hints.WANTED)

RANK = 50
_PLAIN = re.compile(
    r"cargo test(?: --(?:all|all-features|workspace|locked|all-targets|lib|tests)|"
    r" --(?:features|exclude|package)[ =][\w,/-]{1,100}){0,9}"
)
_CHANNEL = re.compile(r"\d{1,4}(\.\d{1,4}){1,2}|(?P<name>nightly|beta)(-\d{4}-\d{2}-\d{2})?")


def facts(project: Project) -> Facts | None:
    if not project.has("Cargo.toml"):
        return None
    manifest = project.toml("Cargo.toml")
    lock = project.first("Cargo.lock")
    manifests = [path for path in sorted(project.paths) if path.rsplit("/", 1)[-1] in ("Cargo.toml", "Cargo.lock")]
    fetch = Step(
        run="cargo fetch --locked" if lock else "cargo fetch",
        evidence=Evidence(path=lock or "Cargo.toml"),
        inputs=tuple(manifests[:100]),
    )
    return Facts(
        ecosystem="Rust",
        runtimes=(_rust(project),),
        steps=(fetch,) if _depends(project, manifest) else (),
        tests=(_test(project, manifest),),
        linters=linters.rust(project),
        formatters=formatters.rust(project),
        caches=("~/.cargo/registry", "~/.cargo/git"),
        problems=tuple(problem for path in ("Cargo.toml", "rust-toolchain.toml") if (problem := project.problems.get(path))),
    )


def _test(project: Project, manifest: dict[str, object]) -> Candidate:
    """Return `cargo test` with the features that the CI's first call of it names: without them some packages don't compile."""
    # `default-members` is a project's own choice of what `cargo test` means
    everything = "workspace" in manifest and "default-members" not in table(manifest["workspace"])
    usual = "cargo test --workspace" if everything else "cargo test"
    tested = [command for command in ci_hints.commands(project) if command.run.startswith("cargo test") and not command.folder]
    # a package that extends another language often can't be tested like that
    rank = RANK if is_only(project, "Cargo.toml") or tested else LAST_RESORT
    fitting = [command for command in tested if _PLAIN.fullmatch(command.run)]
    if fitting and not any(command.run in ("cargo test", usual) for command in fitting):
        command = fitting[0]
        return Candidate(run=command.run, evidence=command.evidence(), needs=("cargo",), rank=rank)
    evidence = project.evidence("Cargo.toml", "[workspace" if everything else "[package", "workspace" if everything else "")
    return Candidate(run=usual, evidence=evidence, needs=("cargo",), rank=rank)


def _rust(project: Project) -> Runtime:
    """`rust-version` is the oldest supported version, not the one to develop with."""
    channel = string(table(project.toml("rust-toolchain.toml").get("toolchain")).get("channel"))
    if channel:
        version = _version(channel)
        return Runtime(
            name="rust", version=version, evidence=project.evidence("rust-toolchain.toml", "channel", shown(channel))
        )
    if project.has("rust-toolchain"):
        for number, line in short_lines(project, "rust-toolchain"):
            found = re.fullmatch(r"\s*(?:channel\s*=\s*)?\"?([\w.-]+)\"?\s*", line)
            if found:
                version = _version(found[1])
                return Runtime(
                    name="rust", version=version, evidence=Evidence(path="rust-toolchain", line=number, text=found[1])
                )
    for text, evidence in version_files.pinned(project, "rust"):
        return Runtime(name="rust", version=_version(text), evidence=evidence)
    return Runtime(name="rust", version="", evidence=project.evidence("Cargo.toml"))


def _version(channel: str) -> str:
    """Return the version or channel. rustup itself installs the nightly of one date that rust-toolchain names."""
    found = _CHANNEL.fullmatch(channel)
    return "" if found is None else found["name"] or channel


def _depends(project: Project, manifest: dict[str, object]) -> bool:
    if "workspace" in manifest or project.has("Cargo.lock"):
        return True
    tables = [manifest, *(table(each) for each in table(manifest.get("target")).values())]
    return any(table(each.get(key)) for each in tables for key in ("dependencies", "dev-dependencies", "build-dependencies"))
