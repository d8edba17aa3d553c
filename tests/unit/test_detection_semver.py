"""Ranges of versions, as package.json and composer.json write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.detection.semver import Dialect, parse_range

CASES: list[tuple[str, str, bool]] = [
    # range, version, inside
    ("^18.17.1", "18.17.1", True),
    ("^18.17.1", "18.17.0", False),
    ("^18.17.1", "19.0.0", False),
    ("^0.2.3", "0.2.9", True),
    ("^0.2.3", "0.3.0", False),
    ("^0.0.3", "0.0.4", False),
    ("^0", "0.9.9", True),
    ("^0", "1.0.0", False),
    ("~22.3.1", "22.3.9", True),
    ("~22.3.1", "22.4.0", False),
    ("~22", "22.9.0", True),
    ("22", "22.9.0", True),
    ("22.x", "22.9.0", True),
    ("22.*", "23.0.0", False),
    ("v22.1", "22.1.7", True),
    ("=22.1.0", "22.1.1", False),
    (">=18", "18.0.0", True),
    (">18", "18.9.9", False),
    (">18", "19.0.0", True),
    ("<=20", "20.99.0", True),
    ("<20", "20.0.0", False),
    (">= 18.0.0 < 21", "20.0.0", True),
    (">=18 <21", "21.0.0", False),
    ("18 - 20", "20.5.0", True),
    ("18 - 20", "21.0.0", False),
    ("18.1.0 - 20.2.3", "20.2.4", False),
    ("^12.17.0 || ^14.13 || >=16.0.0", "15.0.0", False),
    ("^12.17.0 || ^14.13 || >=16.0.0", "24.0.0", True),
    ("^14||^16", "16.1.0", True),
    ("*", "1.2.3", True),
    ("", "1.2.3", True),
    ("x", "1.2.3", True),
    (">=20.0.0-rc.1", "20.0.0", True),
    (">=1.2.3+build", "1.2.3", True),
]


def version(text: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in text.split("."))
    return major, minor, patch


@pytest.mark.parametrize(("text", "candidate", "inside"), CASES)
def test_an_npm_range_holds_the_versions_that_npm_would_install(text: str, candidate: str, inside: bool) -> None:
    found = parse_range(text)
    assert found is not None
    assert found.holds(version(candidate)) is inside


@pytest.mark.parametrize(
    ("text", "candidate", "inside"),
    [
        ("^7.2.5 || ^8.0", "8.4.0", True),
        ("^7.4|^8.0", "7.3.0", False),
        ("~8.1", "8.3.0", True),
        ("~8.1", "9.0.0", False),
        ("~8.1.2", "8.2.0", False),
        (">=7.4,<8.3", "8.3.0", False),
        (">=7.4,<8.3", "8.2.9", True),
        ("8.*", "8.2.0", True),
        ("^8.2@dev", "8.2.0", True),
        (">=8.1 !=8.2.0", "8.3.0", True),
    ],
)
def test_a_composer_range_holds_the_versions_that_composer_would_install(text: str, candidate: str, inside: bool) -> None:
    found = parse_range(text, "composer")
    assert found is not None
    assert found.holds(version(candidate)) is inside


@pytest.mark.parametrize("text", ["lts/*", "latest", "node", "x || y", "^", "1.2.3 ; rm -rf /", "9" * 600, "$(id)", "^1..2"])
def test_text_that_is_no_range_is_not_taken_for_one(text: str) -> None:
    assert parse_range(text) is None


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (">=12", "22"),
        (">=22.12.0", "22"),
        (">=23", "24"),
        ("<20", "18"),
        ("^20.19.0 || ^22.12.0 || >=23", "22"),
        ("~22.3.1", "22.3"),
        ("20.11.1", "20.11.1"),
        ("^25", "25"),
        ("^0.1.0 <0.0.1", ""),
    ],
)
def test_the_choice_is_the_shortest_version_whose_newest_release_is_in_the_range(text: str, chosen: str) -> None:
    found = parse_range(text)
    assert found is not None
    assert found.prefix((22, 24, 20, 18)) == chosen


@given(st.text(alphabet="0123456789.xX*^~<>=|- v,@abc", max_size=40), st.sampled_from(["npm", "composer"]))
def test_any_text_is_a_range_or_none(text: str, dialect: Dialect) -> None:
    found = parse_range(text, dialect)
    if found is not None:
        chosen = found.prefix((22, 24, 20, 18))
        assert all(part.isdecimal() for part in chosen.split(".")) or not chosen


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_caret_range_holds_its_own_version_and_not_the_next_major(major: int, minor: int, patch: int) -> None:
    found = parse_range(f"^{major}.{minor}.{patch}")
    assert found is not None
    assert found.holds((major, minor, patch))
    assert not found.holds((major + 1, 0, 0))
