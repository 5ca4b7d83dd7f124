"""Deadlines: which headers set one, what is left of it, and what its errors say."""

import time

import pytest

from prompt_serve.errors import DeadlineExceeded, RequestInvalid
from prompt_serve.schemas import TIMEOUT_HEADER
from prompt_serve.service.scheduling.deadline import Deadline


@pytest.mark.parametrize(
    ("text", "timeout_s"),
    [(None, 60), ("1", 0.001), ("1500", 1.5), ("007", 0.007), ("60000", 60), ("999999999", 60)],
)
def test_a_header_of_milliseconds_sets_a_deadline_within_the_maximum(
    text: str | None, timeout_s: float
) -> None:
    before = time.monotonic()
    deadline = Deadline.from_header(text, 60)

    assert before + timeout_s <= deadline.at <= time.monotonic() + timeout_s
    assert deadline.timeout_s == timeout_s


@pytest.mark.parametrize(
    "text",
    ["", "0", "000", "-1", "+1", "1.5", "1e3", " 1", "1_0", "x" * 60, "1000000000", "²", "٣", "１"],
)
def test_other_headers_are_invalid(text: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        Deadline.from_header(text, 60)

    assert str(refused.value) == (
        f"{TIMEOUT_HEADER} is {text[:50]!r}; expected a whole number of milliseconds above 0."
    )


def test_what_is_left_becomes_less_and_ends_at_nothing() -> None:
    deadline = Deadline.after(60)
    first, then = deadline.left_s, deadline.left_s

    assert 0 < then <= first <= 60
    assert Deadline.after(-5).left_s == 0


def test_an_error_says_when_and_keeps_the_timeout() -> None:
    error = Deadline.after(2.5).exceeded("in a queue.")

    assert type(error) is DeadlineExceeded
    assert str(error) == "The request's deadline passed in a queue."
    assert error.facts == {"timeout_s": 2.5}


def test_a_check_raises_only_after_the_deadline() -> None:
    Deadline.after(60).check(1, 2)
    with pytest.raises(DeadlineExceeded) as exceeded:
        Deadline.after(0).check(1000, 20_000)

    assert str(exceeded.value) == (
        "The request's deadline passed after 1,000 of 20,000 tasks. Send fewer images or tasks at "
        "once, or allow more time."
    )
    assert exceeded.value.facts == {"timeout_s": 0}
