"""The settings of agents' models: keys, addresses, budgets, and the operator's prices. `config` reads them with all others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gibil_bot.operator_secrets import Secret
from gibil_bot.quantities import parse_count, parse_duration, parse_usd

if TYPE_CHECKING:
    import yaml

    from gibil_bot.agent_task import Price, Rates

T = TypeVar("T")

VENDORS: Mapping[str, str] = {
    "anthropic": "https://api.anthropic.com",
    "openai": "https://api.openai.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
"""Whose keys the bot can have → the address of the API, without the version that begins its paths."""

_VERSION = re.compile(r"/v1(beta)?$")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KEY = re.compile(r"[\x21-\x7e]+")
_PATTERN = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._:/@+*-]{0,199}")
_AMOUNT = re.compile(r"\d{1,6}(\.\d{1,9})?", re.ASCII)
_TOKENS = re.compile(r"[1-9]\d{0,8}", re.ASCII)
_PRICES_BYTES = 256 * 1024
_REQUIRED = ("input", "output")
_RATES = (*_REQUIRED, "cache_read", "cache_write_5m", "cache_write_1h")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """The operator's limits. None: there is none. A day is a day of UTC."""

    task_usd: Decimal | None = Decimal(2)
    run_usd: Decimal | None = Decimal(5)
    person_usd: Decimal | None = Decimal(20)
    """Of one person's commands in all repositories, per day."""
    day_usd: Decimal | None = Decimal(50)
    """Of one repository, per day."""
    run_tokens: int | None = 20_000_000
    day_seconds: int | None = 8 * 3600
    """Machine time of one repository, per day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The checked settings of agents' models."""

    keys: Mapping[str, Secret] = field(default_factory=dict)
    """A key of VENDORS → the real key. Only vendors that have one."""
    urls: Mapping[str, str] = field(default_factory=lambda: dict(VENDORS))
    """Every key of VENDORS → URL without a slash or a version at its end."""
    budgets: Budgets = field(default_factory=Budgets)
    prices: Mapping[str, Price] = field(default_factory=dict)
    """Patterns of models (`*` stands for any characters), in lower case → the operator's price."""
    engines: Path | None = None
    """The folder of the operator's engines."""
    engine: str = ""
    """The engine of tasks that name none. Empty: the first one whose key is set."""

    @property
    def is_enabled(self) -> bool:
        """Whether agents can call a model at all."""
        return bool(self.keys)


def read_model_settings(env: Mapping[str, str], problems: list[str], notes: list[str]) -> ModelSettings:
    """Read and check the settings of models. Appends to `problems` and `notes` as config.load_settings does."""
    keys = {}
    urls = {}
    for vendor, default in VENDORS.items():
        name = f"GIBIL_MODEL_KEY_{vendor.upper()}"
        key = env.get(name, "").strip()
        if key and not _KEY.fullmatch(key):
            problems.append(f"{name} must be one key, without spaces and line breaks")
        elif key:
            keys[vendor] = Secret(key)
        urls[vendor] = _url(f"GIBIL_MODEL_URL_{vendor.upper()}", env, default, problems, notes)
    engines = _path(env.get("GIBIL_ENGINES", "").strip())
    if engines is not None and not engines.is_dir():
        problems.append(f"GIBIL_ENGINES must be a directory, got {str(engines)!r}")
    return ModelSettings(
        keys=keys,
        urls=urls,
        budgets=_budgets(env, problems),
        prices=_price_file(env, problems),
        engines=engines,
        engine=env.get("GIBIL_ENGINE", "").strip(),
    )


def _path(text: str) -> Path | None:
    """Return the absolute path; None for an empty text. A `~` that can't be expanded stays."""
    return Path(os.path.expanduser(text)).absolute() if text else None  # Path.expanduser raises for an unknown user


def _budgets(env: Mapping[str, str], problems: list[str]) -> Budgets:
    default = Budgets()

    def read(name: str, parse: Callable[[str], T], default: T | None) -> T | None:
        text = env.get(name, "").strip()
        if not text:
            return default
        if text.lower() == "none":
            return None
        try:
            return parse(text)
        except ValueError as error:
            problems.append(f"{name}: {error}; or none")
            return default

    return Budgets(
        task_usd=read("GIBIL_BUDGET_TASK", parse_usd, default.task_usd),
        run_usd=read("GIBIL_BUDGET_RUN", parse_usd, default.run_usd),
        person_usd=read("GIBIL_BUDGET_PERSON", parse_usd, default.person_usd),
        day_usd=read("GIBIL_BUDGET_DAY", parse_usd, default.day_usd),
        run_tokens=read("GIBIL_BUDGET_TOKENS", parse_count, default.run_tokens),
        day_seconds=read("GIBIL_BUDGET_TIME", parse_duration, default.day_seconds),
    )


def _url(name: str, env: Mapping[str, str], default: str, problems: list[str], notes: list[str]) -> str:
    text = env.get(name, "").strip().rstrip("/")
    if not text:
        return default
    try:
        url = urlsplit(text)
        is_valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not _KEY.fullmatch(text):
        problems.append(f"{name} must be an http(s) URL such as {default}, got {text!r}")
        return default
    if url.username or url.password or url.query or url.fragment:
        problems.append(f"{name} must have no user name, password, query or fragment: GIBIL_MODEL_KEY_… has the key")
        return default
    if url.scheme == "http" and url.hostname not in _LOOPBACK:
        notes.append(f"{name}: the key and all code that agents read are sent unencrypted; use https")
    return _VERSION.sub("", text)


def _price_file(env: Mapping[str, str], problems: list[str]) -> dict[str, Price]:
    text = env.get("GIBIL_MODEL_PRICES", "").strip()
    path = _path(text)
    if path is None:
        return {}
    try:
        content = path.read_bytes() if path.stat().st_size <= _PRICES_BYTES else None
        decoded = content.decode() if content is not None else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.append(f"GIBIL_MODEL_PRICES must be the path of a readable YAML file, got {text!r}: {reason}")
        return {}
    if decoded is None:
        problems.append(f"GIBIL_MODEL_PRICES: {text} is larger than {_PRICES_BYTES // 1024} KiB")
        return {}
    prices, wrong = parse_prices(decoded)
    problems += [f"GIBIL_MODEL_PRICES: {text}:{problem}" for problem in wrong]
    return prices


def parse_prices(text: str) -> tuple[dict[str, Price], list[str]]:
    """Parse a file of prices. Returns the prices by pattern, and all problems as `line:column: problem`.

    Each key is a model or a pattern of models; its value has USD per million tokens, at least `input` and `output`. What has no
    rate costs what `input` costs. `above:` has the rates of requests with more input than `tokens`.
    """
    import yaml  # only where the file exists

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return {}, [f"{mark.line + 1 if mark else 1}:{mark.column + 1 if mark else 1}: not valid YAML"]
    except RecursionError:
        return {}, ["1:1: nested too deeply"]
    found = _PriceFile()
    return found.read(node), found.problems


class _PriceFile:
    """Reads the nodes of a file of prices."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, node: yaml.Node | None) -> dict[str, Price]:
        if node is None:
            return {}
        prices: dict[str, Price] = {}
        for key, value in self._items(node, "a model, and under it input: 3, output: 15"):
            pattern = key.value.lower()
            if not _PATTERN.fullmatch(pattern):
                self._problem(key, f"{pattern[:60]!r} is not a model's name or a pattern such as claude-sonnet-4-5*")
            elif (price := self._price(value)) is not None:
                prices[pattern] = price
        return prices

    def _price(self, node: yaml.Node) -> Price | None:
        from gibil_bot.agent_task import Price  # every command reads the settings, and not all need msgspec

        rates = self._rates(node, ("above",))
        if rates is None:
            return None
        for key, value in node.value:
            if key.value == "above":
                above = self._rates(value, ("tokens",))
                threshold = next((each for name, each in self._items(value, "") if name.value == "tokens"), None)
                if threshold is None or not _TOKENS.fullmatch(str(threshold.value)):
                    self._problem(threshold or value, "above: needs tokens, a number such as 200000")
                elif above is not None:
                    return Price(base=rates, above_tokens=int(threshold.value), above=above)
                return None
        return Price(base=rates)

    def _rates(self, node: yaml.Node, others: tuple[str, ...]) -> Rates | None:
        before = len(self.problems)
        amounts: dict[str, Decimal] = {}
        for key, value in self._items(node, "input: 3 and output: 15, in USD per million tokens"):
            name = key.value
            if name in _RATES:
                if not isinstance(value.value, str) or not _AMOUNT.fullmatch(value.value):
                    shown = repr(value.value) if isinstance(value.value, str) else "a list or mapping"
                    self._problem(value, f"{name} must be USD per million tokens, such as 3 or 0.25, got {shown}")
                else:
                    amounts[name] = Decimal(value.value)
            elif name not in others:
                self._problem(key, f"unknown key {name[:60]!r}, expected {', '.join((*_RATES, *others))}")
        if len(self.problems) == before and (missing := [name for name in _REQUIRED if name not in amounts]):
            self._problem(node, f"{' and '.join(missing)} missing")
        if len(self.problems) > before:
            return None
        from gibil_bot.agent_task import Rates

        full = {name: amounts.get(name, amounts["input"]) for name in _RATES}
        return Rates(**full)

    def _items(self, node: yaml.Node, expected: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Yield the pairs of a mapping whose keys are strings; a key that occurs again is a problem."""
        import yaml

        if not isinstance(node, yaml.MappingNode):
            if expected:
                self._problem(node, f"write {expected}")
            return
        seen: set[Any] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, "a key must be a word")
            elif key.value.lower() in seen:
                if expected:
                    self._problem(key, f"{key.value[:60]!r} occurs twice")
            else:
                seen.add(key.value.lower())
                yield key, value

    def _problem(self, node: yaml.Node, problem: str) -> None:
        self.problems.append(f"{node.start_mark.line + 1}:{node.start_mark.column + 1}: {problem}")
