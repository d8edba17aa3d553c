"""Services, such as databases, that the CI's job for tests starts, and the variables that it sets for the tests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from gibil_bot.detection import ci_environment, ci_files, ci_hints, workflows
from gibil_bot.detection.detected import Quote
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/-]{0,150}(:[\w.-]{1,100})?")
_PORT = re.compile(r"[1-9]\d{0,4}(:[1-9]\d{0,4})?")
_VERSIONLESS = re.compile(r"(?:docker\.io/)?(?:library/)?(postgres|redis|mariadb|mysql)(?::.*)?")
_MOST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CIService:
    """One entry of a job's `services`."""

    name: str
    image: str
    env: Mapping[str, str]
    ports: tuple[str, ...]
    evidence: Evidence

    @property
    def portable_image(self) -> str:
        """The image without its version if local machines have the distribution's version only."""
        found = _VERSIONLESS.fullmatch(self.image)
        return found[1] if found else self.image

    @property
    def is_official(self) -> bool:
        return _VERSIONLESS.fullmatch(self.image) is not None

    def quote(self) -> Quote:
        return Quote(
            command=f"services: {self.image}",
            path=self.evidence.path,
            line=self.evidence.line or 1,
            is_preparation=True,
            is_service=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CIServices:
    """The services of one job, and the variables that its tests have."""

    services: tuple[CIService, ...] = ()
    env: Mapping[str, str]


def read(project: Project) -> CIServices:
    """Return the services of the job that tests; none if no job does or it has none."""
    commands = workflows.test_job(project)
    nothing = CIServices(env={})
    if not commands:
        return nothing
    job = next((job for job in ci_files.jobs(project) if job.id == commands[-1].job), None)
    if job is None:
        return nothing
    found = tuple(service for service, _ in zip(_services(job), range(_MOST), strict=False))
    if not found:
        return nothing
    return CIServices(services=found, env=ci_environment.of_job(job, commands[-1].run))


def _services(job: ci_files.Job) -> Iterator[CIService]:
    for name, node in ci_files.items(ci_files.get(job.node, "services")):
        is_short = isinstance(node, yaml.ScalarNode)
        place = node if is_short else ci_files.get(node, "image")
        image = next((text for text, _ in ci_hints.expanded(job, place) if _IMAGE.fullmatch(text)), "")
        if place is None or not image or not _NAME.fullmatch(name):
            continue
        ports = (text.removesuffix("/tcp") for text, _ in ci_files.values(ci_files.get(node, "ports")))
        yield CIService(
            name=name,
            image=image,
            env=ci_environment.literal(ci_files.get(node, "env")),
            ports=tuple(port for port in ports if _PORT.fullmatch(port)),
            evidence=Evidence(path=job.path, line=place.start_mark.line + 1, text=f"its CI starts {shown(image)}"),
        )
