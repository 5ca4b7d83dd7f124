"""Faults of callers are answered with a problem document of a documented status, never 5xx.

``make test`` runs a few cases of each kind, the same each time; ``make test-all`` at least
``CASES``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given

from prompt_serve.service.problems import MEDIA_TYPE
from tests.conftest import GENERATED
from tests.service.contract.faults import KINDS, TASK, Call
from tests.service.contract.generated import seeded
from tests.service.process import Served

pytestmark = [pytest.mark.serve, pytest.mark.slow]
CASES = 20_000
FEW, MANY = 40, -(-CASES // len(KINDS))


class Caller:
    """Sends calls and checks what every answer must have."""

    def __init__(self, served: Served) -> None:
        self.http = httpx.Client(timeout=60)
        self.url = served.url
        document = self.http.get(f"{served.url}/v1/openapi.json").json()
        # A template with parameters matches anything, so those without come first.
        self.documented = sorted(
            (
                (re.compile(re.sub(r"\{\w+\}", "[^/]+", f"/v1{path}")), method, operation)
                for path, operations in document["paths"].items()
                for method, operation in operations.items()
            ),
            key=lambda entry: entry[0].pattern.count("[^/]"),
        )
        self.seen: Counter[int] = Counter()
        body = {"name": TASK, "class_names": ["cat", "dog"]}
        self.http.post(f"{served.url}/v1/tasks", json=body).raise_for_status()

    def check(self, request: Call) -> httpx.Response:
        url = httpx.URL(self.url).copy_with(raw_path=request.path.encode())
        headers = [(k.encode(), v.encode("latin-1")) for k, v in request.headers.items()]
        answer = self.http.request(
            request.method, url, content=request.content, headers=headers, follow_redirects=False
        )
        self.seen[answer.status_code] += 1
        shown = f"{request}: {answer.status_code} {answer.text[:500]}"
        assert answer.status_code < 500, shown
        path = url.path  # decoded, and without dot segments
        if answer.status_code >= 400 and path.startswith(("/v1/", "/classify")):
            assert answer.headers["content-type"] == MEDIA_TYPE, shown
            assert {"code", "detail", "status"} <= answer.json().keys(), shown
        operation = self._operation(request.method, path)
        if operation is not None:
            assert str(answer.status_code) in operation["responses"], shown
        return answer

    def _operation(self, method: str, path: str) -> Any:
        for pattern, of_method, operation in self.documented:
            if of_method == method.lower() and pattern.fullmatch(path):
                return operation
        return None


@pytest.fixture(scope="module")
def caller(contract_service: Served) -> Iterator[Caller]:
    caller = Caller(contract_service)
    yield caller
    caller.http.close()


@pytest.mark.parametrize(
    "n_examples", [FEW, pytest.param(MANY, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_the_caller_is_never_one_of_the_service(
    caller: Caller,
    kind: str,
    n_examples: int,
    record_property: Callable[[str, object], None],
) -> None:
    before = caller.seen.copy()

    @seeded(n_examples)
    @given(request=KINDS[kind]())
    def check(request: Call) -> None:
        caller.check(request)

    check()
    seen = caller.seen - before
    print({"kind": kind, "requests": seen.total(), **{str(k): v for k, v in sorted(seen.items())}})
    record_property(GENERATED, seen.total())
    assert seen.total() >= n_examples
