"""Answers in NDJSON as networks and other services leave them: complete, cut off, failed."""

import json
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prompt_serve.client import Client
from prompt_serve.errors import (
    BackboneMismatch,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    PromptServeError,
    ServiceFailed,
    ServiceUnreachable,
)
from tests.client.fake_service import VERSION, FakeService, numbered_image, problem

NDJSON = "application/x-ndjson"
TASKS = [f"task-{n}" for n in range(12)]  # more than the fake service has in a JSON answer
IMAGE = numbered_image(7)


def line(task: str, index: int = 0) -> str:
    classes = [{"class_name": "7", "label": 0, "probability": 0.9, "logit": 1.0}]
    prediction = {"task": task, "version": VERSION, "classes": classes, "newer": 1}
    return json.dumps({"index": index, "prediction": prediction, "newer": 1}) + "\n"


def last(**fields: Any) -> str:
    return json.dumps({"complete": True, "tasks": len(TASKS), "newer": 1, **fields}) + "\n"


LINES = "".join(map(line, TASKS))
COMPLETE = LINES + last()


class CutOff(Response):
    """Response whose connection ends before its body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        send.__self__.transport.close()  # type: ignore[attr-defined]  # uvicorn's


def lines(text: str) -> Response:
    return Response(text, media_type=NDJSON)


def cut(text: str) -> Response:
    response = CutOff(text, media_type=NDJSON)
    del response.headers["content-length"]
    return response


def failed(code: str, status: int, **facts: object) -> Response:
    document = {"title": code, "status": status, "detail": "As requested.", "code": code, **facts}
    return lines(LINES[:300].rpartition("\n")[0] + "\n" + last(complete=False, problem=document))


@pytest.fixture
def streaming(service: FakeService) -> FakeService:
    service.behavior.limits["max_streamed_tasks"] = 100
    return service


@pytest.fixture
def ready(streaming: FakeService) -> Client:
    client = Client(streaming.url, retries=1)
    client.classify([], "pets")  # the limits are known from here on
    return client


CUTS = {
    "no line": cut(""),
    "after a line": cut(line("task-0")),
    "within a line": cut(LINES[:-20]),
    "before the last line": cut(LINES),
    "within the last line": cut(COMPLETE[:-5]),
    "a proxy ends it, no line": lines(""),
    "a proxy ends it after a line": lines(line("task-0")),
    "a proxy ends it within a line": lines(LINES[:-20]),
    "a proxy ends it before the last line": lines(LINES),
    "a proxy ends it within the last line": lines(COMPLETE[:-5]),
}


@pytest.mark.parametrize("kind", CUTS)
def test_an_answer_that_was_cut_off_is_asked_again(
    kind: str, streaming: FakeService, ready: Client
) -> None:
    streaming.behavior.faults.extend([CUTS[kind], lines(COMPLETE)])
    with ready:
        result = ready.classify(IMAGE, TASKS)
    assert [prediction.task for prediction in result.predictions or []] == TASKS


@pytest.mark.parametrize("kind", CUTS)
def test_an_answer_that_is_cut_off_each_time_is_an_error(
    kind: str, streaming: FakeService, ready: Client
) -> None:
    streaming.behavior.faults.extend([CUTS[kind]] * 2)
    with ready, pytest.raises(ServiceUnreachable, match="was cut off") as caught:
        ready.classify(IMAGE, TASKS)
    assert "incomplete" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("backbone-mismatch", 422, BackboneMismatch),
        ("internal-error", 500, ServiceFailed),
        ("not-ready", 503, NotReady),
        ("overloaded", 429, Overloaded),
        ("deadline-exceeded", 504, DeadlineExceeded),
    ],
)
def test_a_problem_in_the_last_line_is_what_its_status_would_be(
    code: str, status: int, kind: type[PromptServeError], streaming: FakeService, ready: Client
) -> None:
    faults = streaming.behavior.faults
    answer = failed(code, status, retry_after_s=0.01, learned_on="other")
    faults.extend([answer] * 2)
    with ready:
        if status == 500:  # the image is to blame, as with other answers
            (result,) = ready.classify([IMAGE], TASKS)
            assert result.error is not None
            assert result.error.detail == "As requested."
        else:
            with pytest.raises(kind, match="As requested") as caught:
                ready.classify(IMAGE, TASKS)
            assert caught.value.facts["learned_on"] == "other"
        assert len(faults) == (0 if status in (429, 503, 504) else 1)
        faults.clear()
        if status in (429, 503, 504):
            faults.extend([answer, lines(COMPLETE)])
            assert len(ready.classify(IMAGE, TASKS).predictions or []) == len(TASKS)


@pytest.mark.parametrize(
    "text",
    [
        last(),
        line("task-0") + last(),
        COMPLETE.replace('"label": 0', '"label": "x"'),
        COMPLETE.replace('"index": 0', '"index": 1'),
        '{"results": []}\n' + last(),
        "nonsense\n" + last(),
    ],
)
def test_lines_that_do_not_answer_the_question_are_an_error(
    text: str, streaming: FakeService, ready: Client
) -> None:
    streaming.behavior.faults.append(lines(text))
    with ready, pytest.raises(ServiceFailed):
        ready.classify(IMAGE, TASKS)


def test_a_request_that_fails_before_its_first_line_is_split_as_others_are(
    streaming: FakeService, ready: Client
) -> None:
    streaming.behavior.faults.extend(
        [problem("request-too-large", 413), lines(COMPLETE), lines(COMPLETE)]
    )
    with ready:
        results = ready.classify([IMAGE, IMAGE], TASKS)
    assert [len(result.predictions or []) for result in results] == [len(TASKS)] * 2


def test_a_service_without_ndjson_is_asked_in_groups(service: FakeService, client: Client) -> None:
    service.behavior.tasks |= dict.fromkeys(TASKS, b"")
    result = client.classify(IMAGE, TASKS)
    assert [prediction.task for prediction in result.predictions or []] == TASKS
    assert service.behavior.paths.count("POST /v1/classify") == 2


@pytest.mark.parametrize(
    ("n_tasks", "images"), [(100, 4), (8000, 2), pytest.param(10_001, 1, marks=pytest.mark.long)]
)
def test_requests_with_many_tasks_have_fewer_images(
    n_tasks: int, images: int, streaming: FakeService, client: Client
) -> None:
    streaming.behavior.tasks |= {f"t{n}": b"" for n in range(n_tasks - 1)}
    names = ["pets", *(f"t{n}" for n in range(n_tasks - 1))]
    streaming.behavior.limits |= {"max_streamed_tasks": 50_000, "max_body_bytes": 10**8}
    # The fake service answers in JSON whatever is asked for, as an old one would.
    client.classify([IMAGE] * 4, names)
    assert max(streaming.behavior.images_per_request) == images
