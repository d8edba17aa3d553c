"""Secrets never appear in the output: not plain, encoded or split; everything else is unchanged."""

from __future__ import annotations

import base64
import json
import time
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gibil_bot.runs.redact import LONGEST_LINE, Redactor

CHARACTERS = st.characters(exclude_categories=["Cs"])
SECRETS = st.text(CHARACTERS, min_size=4, max_size=60).filter(lambda text: len(text.strip()) >= 4)
"""All of Unicode, including line ends."""
AROUND = st.binary(max_size=40)
TOKEN = "kT9vQ2mX7pLw4ZrB"


def stream(redactor: Redactor, data: bytes, cuts: list[int]) -> bytes:
    """Feed `data` in pieces that end at these offsets."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    return b"".join(redactor.feed(piece) for piece in pieces) + redactor.flush()


def forms(secret: str, before: bytes, after: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Map each encoding to what a script prints, and what must not remain of it."""
    data = secret.encode()
    bits = 8 * len(before)
    encoded = base64.b64encode(before + data + after)
    own = encoded[-(-bits // 6) : (bits + 8 * len(data)) // 6]
    url_safe = base64.urlsafe_b64encode(before + data + after)
    own_url_safe = url_safe[-(-bits // 6) : (bits + 8 * len(data)) // 6]
    written = json.dumps(secret)[1:-1].encode()
    return {
        "plain": (before + data + after, data),
        "base64": (encoded, own),
        "base64url": (url_safe, own_url_safe),
        "url": (before + quote(secret, safe="").encode() + after, quote(secret, safe="").encode()),
        "url, slashes kept": (before + quote(secret).encode() + after, quote(secret).encode()),
        "form": (before + quote_plus(secret).encode() + after, quote_plus(secret).encode()),
        "json": (before + written + after, written),
        "json, not ascii": (
            before + json.dumps(secret, ensure_ascii=False)[1:-1].encode() + after,
            json.dumps(secret, ensure_ascii=False)[1:-1].encode(),
        ),
    }


@given(SECRETS, AROUND, AROUND, st.lists(st.integers(0, 400), max_size=6))
@example("a\nb\nc\nd", b"x\ny", b"\n", [1, 2, 3, 4, 5])
@example("***0", b"", b"0", [])
@example("aaaa", b"aaa", b"aaa", [2])
def test_a_secret_is_masked_in_every_encoding_and_at_every_split(
    secret: str, before: bytes, after: bytes, cuts: list[int]
) -> None:
    for printed, forbidden in forms(secret, before, after).values():
        redactor = Redactor([secret])
        assert forbidden not in stream(redactor, printed, cuts)


@given(
    st.lists(SECRETS, min_size=1, max_size=4),
    st.lists(st.integers(0, 5), max_size=12),
    st.lists(st.integers(0, 999), max_size=8),
)
def test_adjacent_and_nested_secrets_are_all_masked(secrets: list[str], order: list[int], cuts: list[int]) -> None:
    printed = "".join(secrets[index % len(secrets)] + ("\n" if index > 3 else "") for index in order).encode()
    out = stream(Redactor(secrets), printed, cuts)
    assert not [secret for secret in secrets if secret.encode() in out]


@given(st.text("qwertz \n\r0123.", max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_text_without_secrets_passes_unchanged(text: str, cuts: list[int]) -> None:
    redactor = Redactor([TOKEN, "two\nlines\r\nof a secret"])
    assert stream(redactor, text.encode(), cuts) == text.encode()
    assert redactor.text(text) == text


@given(
    st.text(f"ab\n\r{TOKEN[:3]}", max_size=60),
    st.text(f"ab\n{TOKEN[:3]}", max_size=60),
    st.lists(st.integers(0, 200), max_size=9),
)
def test_the_split_of_the_output_makes_no_difference(before: str, after: str, cuts: list[int]) -> None:
    secrets = [TOKEN, TOKEN[8:] + "more", "ab\nab", "a\nb\nkT9\nb"]
    printed = f"{before}{TOKEN}more{after}"
    assert stream(Redactor(secrets), printed.encode(), cuts).decode() == Redactor(secrets).text(printed)


@pytest.mark.parametrize(
    "token",
    [
        "ghs_16C7e42F292c6912E7710c838347Ae178B4a",
        "ghs_123456_eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxMjM0NTYifQ.c2ln-bmF0dXJl_x",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "gho_16C7e42F292c6912E7710c838347Ae178B4a",
        "ghu_16C7e42F292c6912E7710c838347Ae178B4a",
        "ghr_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
        "AKIAIOSFODNN7EXAMPLE",
        "sk-ant-api03-" + "x1Y-" * 20,
        "sk-proj-" + "x1Y_" * 20,
        "AIza" + "x1Y-_" * 7,
    ],
)
def test_unregistered_tokens_are_recognized_by_their_form(token: str) -> None:
    redactor = Redactor([])
    assert redactor.text(f'export TOKEN="{token}" # done') == 'export TOKEN="***" # done'
    for cut in range(len(token)):
        line = f"a {token} b\n".encode()
        assert redactor.feed(line[: cut + 2]) + redactor.feed(line[cut + 2 :]) == b"a *** b\n"


def test_the_password_of_a_clone_url_is_masked_and_the_address_remains() -> None:
    masked = Redactor([]).text("fatal: https://x-access-token:some.Thing-1@github.com/ada/engine.git")
    assert masked == "fatal: https://x-access-token:***@github.com/ada/engine.git"


def key(lines: int, end: bool = True) -> str:
    body = "\n".join(f"{line:02d}" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" for line in range(lines))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n" + ("-----END RSA PRIVATE KEY-----\n" if end else "")


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_private_key_is_masked_from_its_first_line_to_its_last(size: int) -> None:
    data = ("before\n" + key(20) + "after\n").encode()
    redactor = Redactor([])
    out = b"".join(redactor.feed(data[start : start + size]) for start in range(0, len(data), size)) + redactor.flush()
    assert out == b"before\n***\nafter\n"


def test_an_unfinished_private_key_is_masked_and_the_text_after_it_remains() -> None:
    redactor = Redactor([])
    assert redactor.feed(key(3, end=False).encode() + b"that was short\n") == b""
    assert redactor.held > 0
    assert redactor.flush() == b"***\nthat was short\n"


def test_a_private_key_inside_json_is_masked() -> None:
    assert Redactor([]).text(json.dumps({"key": key(3)})) == '{"key": "***\\n"}'


@pytest.mark.parametrize("printed", ["two words", "of a secret"])
def test_each_line_of_a_multi_line_secret_is_masked(printed: str) -> None:
    assert Redactor(["two words\nof a secret\n"]).text(f"> {printed} <") == "> *** <"


@pytest.mark.parametrize("width", [64, 76])
def test_a_long_secret_is_masked_although_base64_wraps_it(width: int) -> None:
    secret = TOKEN * 12
    encoded = base64.b64encode(secret.encode()).decode()
    lines = [encoded[start : start + width] for start in range(0, len(encoded), width)]
    out = Redactor([secret]).text("\n".join(lines) + "\n")
    assert not [line for line in lines if line in out]


def test_a_finished_line_is_released_at_once() -> None:
    redactor = Redactor([TOKEN])
    assert redactor.feed(b"one\ntwo") == b"one\n"
    assert redactor.held == 3
    assert redactor.feed(b" 50%\rthree") == b"two 50%\r"
    assert redactor.flush() == b"three"
    assert redactor.held == 0


def test_an_unfinished_line_is_released_up_to_a_possible_secret() -> None:
    redactor = Redactor([TOKEN])
    out, filler = b"", b"." * 1000
    for _ in range(1000):
        out += redactor.feed(filler + TOKEN.encode()[:9])
        out += redactor.feed(TOKEN.encode()[9:])
        assert redactor.held <= LONGEST_LINE
    out += redactor.flush()
    assert out == (filler + b"***") * 1000


def test_an_endless_token_is_not_held_back_for_ever() -> None:
    redactor = Redactor([])
    out = b""
    for _ in range(300):
        out += redactor.feed(b"ghp_" + b"a" * 996)
        assert redactor.held <= LONGEST_LINE + 1000
    out += redactor.flush()
    assert set(out) == set(b"*")


def test_secrets_too_short_to_mask_are_shown_and_reported() -> None:
    redactor = Redactor(["abc", "", " x \n", TOKEN])
    assert redactor.notes == ("2 of the secrets are shorter than 4 characters and are not masked",)
    assert redactor.text("abc x") == "abc x"
    assert Redactor([TOKEN]).notes == ()


def test_bytes_that_are_not_text_pass_unchanged() -> None:
    data = bytes(range(256)) * 3
    assert stream(Redactor([TOKEN]), data, [100, 300]) == data


def test_many_beginnings_of_secrets_take_linear_time() -> None:
    """Work is linear in the length of the output, not quadratic: four times the text takes less than forty times as long."""

    def took(count: int) -> float:
        redactor = Redactor([TOKEN])
        start = time.process_time()
        for line in (b"-----BEGIN PRIVATE KEY-----", b"BEGIN " * 5, b"-----BEGIN " + b"A" * 16):
            redactor.feed((line + b"\n") * count)
            redactor.flush()
        return time.process_time() - start

    took(100)
    assert took(8000) < 40 * max(took(2000), 0.001)
