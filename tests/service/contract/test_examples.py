"""Examples of the OpenAPI document: requests that run as they are, responses of their schemas."""

from typing import Any

import httpx
import pytest
import schemathesis
from pydantic import BaseModel

from prompt_serve import schemas
from prompt_serve.schemas import Problem, Schema
from prompt_serve.service.http.app import create_app
from tests.service.contract.documents import CONFORMANCE, operations
from tests.service.process import Served

JSON = "application/json"
# Operations with a JSON body, in an order in which their examples run on an empty service.
ORDER = (
    "add_zero_shot_task", "set_tags", "edit_tags", "set_pinned", "alias_task", "classify", "embed",
    "score", "roll_back_task",
)  # fmt: skip


def _example(document: dict[str, Any], operation: dict[str, Any]) -> Any:
    """Return the example of a JSON body: its own, or that of its schema."""
    form = operation["requestBody"]["content"][JSON]
    if "example" in form:
        return form["example"]
    schema = form["schema"]
    name = next(iter(schema.get("anyOf", [schema])))["$ref"].rpartition("/")[2]
    return document["components"]["schemas"][name]["examples"][0]


def test_every_json_body_has_an_example_that_is_run() -> None:
    document = create_app().openapi()
    found = {
        operation["operationId"]
        for _, _, operation in operations(document)
        if JSON in operation.get("requestBody", {}).get("content", {})
    }

    assert found == set(ORDER)


@pytest.mark.serve
@pytest.mark.slow
def test_every_example_runs(contract_service: Served) -> None:
    with httpx.Client(base_url=contract_service.url, timeout=30) as http:
        schema = schemathesis.openapi.from_url(f"{contract_service.url}/v1/openapi.json")
        document = http.get("/v1/openapi.json").json()
        by_id = {operation["operationId"]: operation for _, _, operation in operations(document)}
        for name in ORDER:
            if name == "roll_back_task":  # to a version before this one
                other = {"name": "pets", "class_names": ["horse", "cow"]}
                assert http.post("/v1/tasks", json=other).status_code == 200
            case = schema.find_operation_by_id(name).Case(
                path_parameters={"name": "pets-2" if name == "alias_task" else "pets"},
                body=_example(document, by_id[name]),
                media_type=JSON,
            )
            answer = case.call_and_validate(checks=CONFORMANCE)

            assert answer.status_code in (200, 201), f"{name}: {answer.text}"


BODIES = [
    kind
    for kind in vars(schemas).values()
    if isinstance(kind, type)
    and issubclass(kind, (Schema, Problem))
    and "examples" in kind.model_json_schema()
]


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_an_example_is_one_of_its_schema(kind: type[BaseModel]) -> None:
    (example,) = kind.model_json_schema()["examples"]

    assert kind.model_validate(example).model_dump(exclude_unset=True) == example
