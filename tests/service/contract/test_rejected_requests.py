"""Requests that the schema cannot rule out are rejected with 422, never with 400 or 500."""

import httpx
import pytest

from tests.service.process import Served

pytestmark = [pytest.mark.serve, pytest.mark.slow]
ROUTES = (
    "POST /v1/tasks", "PUT /v1/tasks/x/tags", "PUT /v1/tasks/x/alias", "PUT /v1/tasks/x/pinned",
    "POST /v1/tasks/x/rollback", "POST /v1/classify", "POST /v1/embed", "POST /v1/score",
)  # fmt: skip
BODIES = {
    "Latin-1": '{"name": "é"}'.encode("latin-1"),
    "an executable": b"\x7fELF\x02\x01\xff",
    "deeply nested": b"[" * 40_000,
    "cut off": b'{"name": "a',
    "half a surrogate pair": b'{"name": "\xed\xa0\x80"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_json_is_invalid(contract_service: Served, body: bytes) -> None:
    with httpx.Client(base_url=contract_service.url, timeout=30) as http:
        for route in ROUTES:
            method, path = route.split()
            answer = http.request(
                method, path, content=body, headers={"content-type": "application/json"}
            )

            assert answer.status_code == 422, f"{route}: {answer.text}"
            assert answer.json()["code"] == "request-invalid", route


@pytest.mark.parametrize(
    "query",
    [
        "before=0", "before=-14472263027238893518848", "before=9223372036854775808",
        "before=x", "limit=0", "subject=a%00b", "action=%00",
    ],
)  # fmt: skip
def test_numbers_and_texts_that_a_database_rejects_are_invalid(
    contract_service: Served, query: str
) -> None:
    answer = httpx.get(f"{contract_service.url}/v1/audit?{query}")

    assert answer.status_code == 422
    assert answer.json()["code"] == "request-invalid"
    assert query.partition("=")[0] in answer.json()["detail"]
