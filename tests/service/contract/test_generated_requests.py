"""Valid requests that schemathesis generates from the document get documented answers."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st

from prompt_serve.schemas import TIMEOUT_HEADER
from prompt_serve.service.http.app import create_app
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
def test_every_answer_is_documented(schema: Any, name: str, n_examples: int) -> None:
    operation = schema.find_operation_by_id(name)

    @seeded(n_examples)
    @given(case=operation.as_strategy(), is_known=st.booleans())
    def check(case: Any, is_known: bool) -> None:
        case.headers.pop(TIMEOUT_HEADER, None)  # a deadline of a millisecond is a 504
        if is_known and "name" in case.path_parameters:
            case.path_parameters["name"] = TASK
        if is_known and name in ("classify", "score"):
            case.query = {"task": [TASK]}
        case.call_and_validate(checks=CONFORMANCE)

    check()
