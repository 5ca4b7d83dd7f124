"""Valid requests that schemathesis generates from the document get documented answers."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st

from prompt_serve.schemas import TIMEOUT_HEADER
from prompt_serve.service.http.app import create_app
from tests.conftest import GENERATED
from tests.service.contract.documents import CONFORMANCE, operations
from tests.service.contract.generated import seeded
from tests.service.process import Served

pytestmark = [pytest.mark.serve, pytest.mark.slow]
FEW, MANY = 25, 300
OPERATIONS = [operation["operationId"] for _, _, operation in operations(create_app().openapi())]
TASK = "generated"


@pytest.fixture(scope="module")
def schema(contract_service: Served) -> Any:
    body = {"name": TASK, "class_names": ["cat", "dog"]}
    httpx.post(f"{contract_service.url}/v1/tasks", json=body).raise_for_status()
    return schemathesis.openapi.from_url(f"{contract_service.url}/v1/openapi.json")


@pytest.mark.parametrize(
    "n_examples", [FEW, pytest.param(MANY, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_documented(
    schema: Any, name: str, n_examples: int, record_property: Callable[[str, object], None]
) -> None:
    operation = schema.find_operation_by_id(name)
    seen: Counter[int] = Counter()

    @seeded(n_examples)
    @given(case=operation.as_strategy(), is_known=st.booleans())
    def check(case: Any, is_known: bool) -> None:
        case.headers.pop(TIMEOUT_HEADER, None)  # a deadline of a millisecond is a 504
        if is_known and "name" in case.path_parameters:
            case.path_parameters["name"] = TASK
        if is_known and name in ("classify", "score"):
            case.query = {"task": [TASK]}
        answer = case.call_and_validate(checks=CONFORMANCE)
        seen[answer.status_code] += 1

    check()
    print({"operation": name, **{str(k): v for k, v in sorted(seen.items())}})
    record_property(GENERATED, seen.total())
    # An operation without parameters has few different requests.
    assert seen.total() >= min(n_examples, 2)
