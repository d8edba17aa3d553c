"""PHP: Composer, with PHPUnit, Pest, or the project's own `test` script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from gibil_bot.detection import ci_hints, linters, version_files
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.project import Project
from gibil_bot.detection.semver import parse_range
from gibil_bot.detection.values import items, quoted, shown, string, table

_PHPUNIT = ("phpunit.xml", "phpunit.xml.dist", "phpunit.dist.xml")
WANTED = ("composer.json", ".php-version", *version_files.WANTED, *ci_hints.WANTED)

_DISTRIBUTIONS = ((8, 2), (8, 3), (8, 4))
"""The versions of PHP in the releases of Debian and Ubuntu that machines have."""
_OTHERS = ((8, 1), (8, 0), (7, 4), (8, 5), (7, 3), (7, 2))
_VERSION = re.compile(r"(\d{1,3}\.\d{1,3})(?:\.\d{1,3})?")
_ALWAYS = ("php-cli", "php-mbstring", "php-xml", "php-curl", "php-zip", "unzip")
_BUNDLED = frozenset(
    (
        *("ctype", "date", "fileinfo", "filter", "ftp", "hash", "iconv", "json", "libxml", "openssl"),
        *("pcntl", "pcre", "pdo", "phar", "posix", "random", "readline", "reflection", "session", "sockets"),
        *("sodium", "spl", "standard", "tokenizer", "zlib", "opcache", "exif", "gettext", "shmop", "sysvmsg"),
        *("sysvsem", "sysvshm", "calendar", "ffi"),
    )
)
_XML = frozenset((*("dom", "simplexml", "xml", "xmlreader", "xmlwriter", "xsl"),))
_EXTENSION = re.compile(r"ext-([a-z][a-z0-9_]{0,30})")
_PACKAGED = frozenset(
    (
        *("amqp", "apcu", "ast", "bcmath", "bz2", "curl", "dba", "ds", "enchant", "gd", "gmp", "gnupg"),
        *("igbinary", "imagick", "imap", "intl", "ldap", "mbstring", "memcached", "mongodb", "msgpack"),
        *("mysql", "oauth", "odbc", "pgsql", "pspell", "redis", "snmp", "soap", "sqlite3", "ssh2", "tidy"),
        *("uuid", "xdebug", "xmlrpc", "yaml", "zip", "zmq"),
    )
)
_RENAMED = {"pdo_sqlite": "sqlite3", "pdo_mysql": "mysql", "mysqli": "mysql", "pdo_pgsql": "pgsql", "pdo_odbc": "odbc"}


def facts(project: Project) -> Facts | None:
    if not project.has("composer.json"):
        return None
    manifest = project.json("composer.json")
    requires = {**table(manifest.get("require")), **table(manifest.get("require-dev"))}
    tests, linting = tuple(_tests(project, manifest, requires)), linters.php(project)
    if not (tests or linting) and not any(path.endswith((".php", ".phpt")) for path in project.paths):
        return None  # a package of another language, which is also published for Composer
    lock = project.first("composer.lock")
    return Facts(
        ecosystem="PHP",
        runtimes=(_php(project, manifest), Runtime(name="composer", evidence=Evidence(path="composer.json"))),
        steps=(
            Step(
                run="composer install --no-interaction --prefer-dist --no-progress",
                evidence=Evidence(path=lock or "composer.json"),
                inputs=("composer.json", *((lock,) if lock else ())),
            ),
        ),
        tests=tests,
        linters=linting,
        packages=tuple(dict.fromkeys((*_ALWAYS, *_extensions(requires)))),
        env={"COMPOSER_ALLOW_SUPERUSER": "1", "COMPOSER_NO_INTERACTION": "1", "COMPOSER_PROCESS_TIMEOUT": "0"},
        caches=("~/.cache/composer",),
        problems=tuple(problem for path in ("composer.json",) if (problem := project.problems.get(path))),
    )


def _php(project: Project, manifest: dict[str, Any]) -> Runtime:
    for text, evidence in _pins(project, manifest):
        if found := _VERSION.fullmatch(text):
            return Runtime(name="php", version=found[1], evidence=evidence)
    wanted = string(table(manifest.get("require")).get("php"))
    allowed = parse_range(wanted, "composer") if wanted else None
    evidence = project.evidence("composer.json", '"php"', f"require php {shown(wanted)}" if wanted else "")
    if allowed is None or all(allowed.first_minor([version]) for version in _DISTRIBUTIONS):
        return Runtime(name="php", version="", evidence=evidence)
    fitting = [text for version in (*_DISTRIBUTIONS, *_OTHERS) if (text := allowed.first_minor([version]))]
    return Runtime(name="php", version=fitting[0] if fitting else "", accepts=tuple(fitting[1:]), evidence=evidence)


def _pins(project: Project, manifest: dict[str, Any]) -> Iterator[tuple[str, Evidence]]:
    if found := version_files.first_line(project, ".php-version"):
        yield found
    yield from version_files.pinned(project, "php")
    if platform := string(table(table(manifest.get("config")).get("platform")).get("php")):
        yield platform, project.evidence("composer.json", '"platform"', f"platform php {shown(platform)}")


def _extensions(requires: dict[str, Any]) -> list[str]:
    """Return the packages of the required extensions that PHP's own packages don't contain."""
    names = sorted(found[1] for name in requires if (found := _EXTENSION.fullmatch(name.casefold())))
    packages = ["xml" if name in _XML else _RENAMED.get(name, name) for name in names if name not in _BUNDLED]
    return [f"php-{name}" for name in packages if name == "xml" or name in _PACKAGED]


def _tests(project: Project, manifest: dict[str, Any], requires: dict[str, Any]) -> Iterator[Candidate]:
    binaries = (string(table(manifest.get("config")).get("bin-dir")) or "vendor/bin").rstrip("/")
    script = " && ".join(filter(None, (string(each) for each in items(table(manifest.get("scripts")).get("test")))))
    if script:
        evidence = project.evidence("composer.json", '"test"', f"test: {shown(script)}")
        yield Candidate(run='composer test -- "$@"', shown="composer test", evidence=evidence, needs=("composer",), rank=30)
    for package, program in (
        ("pestphp/pest", "pest"),
        ("phpunit/phpunit", "phpunit"),
        ("symfony/phpunit-bridge", "simple-phpunit"),
        ("codeception/codeception", "codecept run"),
        ("phpspec/phpspec", "phpspec run"),
    ):
        config = project.first(*_PHPUNIT)
        if package in requires or (package == "phpunit/phpunit" and config):
            name, *words = program.split()
            path = f"{binaries}/{name}"
            evidence = (
                project.evidence("composer.json", f'"{package}"', package)
                if package in requires
                else Evidence(path=config or "")
            )
            arguments, evidence = _ci_arguments(project, name, evidence)
            run = shlex.join([*words, *arguments])
            check = f"test -f {quoted(path)}"
            yield Candidate(run=f"php {quoted(path)} {run}".rstrip(), evidence=evidence, needs=("php",), check=check, rank=50)
            return


def _ci_arguments(project: Project, program: str, otherwise: Evidence) -> tuple[list[str], Evidence]:
    """Return the suite that the CI's first call of the program selects: others may need a server that a later job starts."""
    for command in ci_hints.commands(project):
        found = re.match(rf"(?:php )?(?:\./)?vendor/bin/{re.escape(program)}(?: |$)", command.run)
        if not found or not command.literal or re.search(r"[;&|<>$`]", command.run):
            continue
        try:
            words = shlex.split(command.run)
        except ValueError:
            continue
        for index, word in enumerate(words):
            if word == "--testsuite" and index + 1 < len(words):
                return [word, words[index + 1]], command.evidence()
            if word.startswith("--testsuite="):
                return [word], command.evidence()
        return [], otherwise
    return [], otherwise
