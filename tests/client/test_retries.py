"""Calls are retried where that helps, within limits."""

import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from starlette.responses import PlainTextResponse

from prompt_serve.client import Client
from prompt_serve.client.retries import RetryPolicy, RetryState, retry_after_s
from prompt_serve.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    ServiceUnreachable,
    TaskNotFound,
)
from tests.client.fake_service import Drop, FakeService, problem


def test_dropped_connections_are_retried(service: FakeService, client: Client) -> None:
    service.behavior.faults.extend([Drop(), Drop()])

    assert client.info().precision == "fp32"
    assert service.behavior.paths == ["GET /v1/info"] * 3


def test_refusals_are_retried_after_the_time_they_name(
    service: FakeService, client: Client
) -> None:
    service.behavior.faults.append(problem("overloaded", 429, retry_after_s=1))

    client.info()

    first, second = service.behavior.times
    assert 0.99 <= second - first <= 5.0


@pytest.mark.parametrize(
    ("code", "status", "error"), [("overloaded", 429, Overloaded), ("not-ready", 503, NotReady)]
)
def test_retries_end_when_the_service_keeps_refusing(
    code: str, status: int, error: type[Exception], service: FakeService
) -> None:
    service.behavior.faults.extend([problem(code, status, "Not now.")] * 5)

    with Client(service.url, retries=2) as client, pytest.raises(error, match="Not now"):
        client.info()

    assert len(service.behavior.paths) == 3


def test_retries_end_when_connections_keep_dropping(service: FakeService) -> None:
    service.behavior.faults.extend([Drop()] * 5)

    with (
        Client(service.url, retries=1) as client,
        pytest.raises(ServiceUnreachable, match="tried 2 times") as caught,
    ):
        client.info()

    assert (caught.value.facts["url"], caught.value.facts["attempts"]) == (service.url, 2)


def test_a_delay_beyond_the_budget_is_not_waited_for(service: FakeService, client: Client) -> None:
    service.behavior.faults.append(problem("overloaded", 429, retry_after_s=3600))
    started = time.monotonic()

    with pytest.raises(Overloaded) as caught:
        client.info()

    assert caught.value.retry_after_s == 3600
    assert time.monotonic() - started < 5.0


def test_a_timeout_is_not_reported_as_an_unreachable_service(
    service: FakeService,
) -> None:
    service.behavior.delay_s = lambda: 5.0

    with (
        Client(service.url, retries=0, timeout_s=0.2) as client,
        pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"),
    ):
        client.info()


def test_permanent_errors_are_not_retried(service: FakeService, client: Client) -> None:
    with pytest.raises(TaskNotFound):
        client.task("pest")

    assert service.behavior.paths == ["GET /v1/tasks/pest"]


def test_a_deletion_whose_answer_was_lost_is_no_error(service: FakeService, client: Client) -> None:
    service.behavior.drop_after_work.append(Drop())

    client.delete("pets")

    assert service.behavior.paths == ["DELETE /v1/tasks/pets"] * 2
    with pytest.raises(TaskNotFound):
        client.delete("pets")


def test_waiting_for_a_service_ends_when_it_is_ready(service: FakeService, client: Client) -> None:
    service.behavior.faults.extend([problem("not-ready", 503), Drop()])

    client.wait_until_ready(timeout_s=30)

    assert service.behavior.paths == ["GET /readyz"] * 3


def test_waiting_for_a_service_says_what_it_waited_for(
    service: FakeService, client: Client
) -> None:
    service.behavior.faults.extend([PlainTextResponse("loading", 503)] * 100)
    with pytest.raises(NotReady, match=r"Waited 0\.5 s\. .*loading"):
        client.wait_until_ready(timeout_s=0.5)

    service.stop()
    with pytest.raises(ServiceUnreachable, match=r"Waited 0\.5 s\. Cannot reach"):
        client.wait_until_ready(timeout_s=0.5)


def test_pauses_grow_with_jitter_up_to_a_limit() -> None:
    random.seed(0)
    retry_state = RetryState(RetryPolicy(retries=8, first_delay_s=1.0, max_delay_s=8.0))

    delays = [retry_state.next_delay_s() for _ in range(9)]

    for delay, longest in zip(delays, [1, 2, 4, 8, 8, 8, 8, 8], strict=False):
        assert delay is not None
        assert longest / 2 <= delay <= longest
    assert delays[8] is None


def test_a_policy_without_a_count_ends_with_its_budget() -> None:
    retry_state = RetryState(RetryPolicy(retries=None, budget_s=0.2, first_delay_s=0.05))
    started = time.monotonic()

    while (delay_s := retry_state.next_delay_s()) is not None:
        time.sleep(delay_s)

    assert 0.2 <= time.monotonic() - started < 5.0


def test_retry_after_is_a_number_or_a_date() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert retry_after_s({"retry-after": "-3"}) == 0.0
    assert retry_after_s({"retry-after": in_a_minute}) == pytest.approx(60, abs=5)
    for nonsense in ("", "soon", "nan", "inf"):
        assert retry_after_s({"retry-after": nonsense}) is None
