"""Errors reach the caller as the package's own exceptions, with their facts."""

import pytest
from starlette.responses import HTMLResponse, JSONResponse

from prompt_serve.client import Client
from prompt_serve.errors import (
    ERRORS_BY_CODE,
    BackboneMismatch,
    ConfigInvalid,
    ImageInvalid,
    Overloaded,
    RequestInvalid,
    RequestTooLarge,
    ServiceFailed,
    ServiceUnreachable,
    TaskNotFound,
)
from tests.client.fake_service import FakeService, numbered_image, problem

RETRIED = {"overloaded", "not-ready", "deadline-exceeded", "service-unreachable"}


@pytest.mark.parametrize("code", sorted(set(ERRORS_BY_CODE) - RETRIED - {"internal-error"}))
def test_every_code_comes_back_as_the_exception_it_names(
    code: str, service: FakeService, client: Client
) -> None:
    service.behavior.faults.append(problem(code, 422, "The reason.", field="name", seen=[1, 2]))

    with pytest.raises(ERRORS_BY_CODE[code], match="The reason") as caught:
        client.info()

    assert type(caught.value) is ERRORS_BY_CODE[code]
    assert caught.value.facts["field"] == "name"
    assert caught.value.__dict__["seen"] == (1, 2)


def test_an_unknown_task_names_those_that_are_loaded(client: Client) -> None:
    with pytest.raises(TaskNotFound, match="No task") as caught:
        client.classify(numbered_image(1), "pest")

    assert (caught.value.name, caught.value.loaded) == ("pest", ("pets",))


def test_an_internal_error_is_a_service_failure(service: FakeService, client: Client) -> None:
    service.behavior.faults.append(problem("internal-error", 500, "Something went wrong."))

    with pytest.raises(ServiceFailed, match="Something went wrong"):
        client.info()


def test_another_server_at_the_url_is_recognized(service: FakeService, client: Client) -> None:
    service.behavior.faults.append(HTMLResponse("<h1>It works!</h1>", 404))

    with pytest.raises(ServiceFailed, match=r"404.*is this the URL.*It works!") as caught:
        client.info()

    assert caught.value.status == 404
    assert caught.value.facts["body"] == "<h1>It works!</h1>"


def test_a_success_of_another_server_is_an_error(service: FakeService, client: Client) -> None:
    service.behavior.faults.append(JSONResponse({"hello": "world"}))

    with pytest.raises(ServiceFailed, match="not part of the protocol"):
        client.info()


def test_too_few_results_are_not_passed_off_as_an_answer(
    service: FakeService, client: Client
) -> None:
    client.info()
    images = [numbered_image(1), numbered_image(2)]
    service.behavior.is_refused = lambda _: JSONResponse({"results": [], "backbone": "x"})

    with pytest.raises(ServiceFailed, match="does not cover 2 images and 1 task:"):
        client.classify(images, "pets")


def test_facts_cannot_overwrite_what_makes_an_exception(
    service: FakeService, client: Client
) -> None:
    fault = problem("backbone-mismatch", 422, "Mine.", message="Theirs.", facts=1, args=2)
    service.behavior.faults.append(fault)

    with pytest.raises(BackboneMismatch) as caught:
        client.info()

    assert (caught.value.message, str(caught.value)) == ("Mine.", "Mine.")


def test_a_bad_image_alone_is_raised(client: Client) -> None:
    with pytest.raises(ImageInvalid, match="Not an image"):
        client.classify(b"no image", "pets")


def test_bad_images_of_a_list_have_their_own_errors(client: Client) -> None:
    results = client.classify([b"bad", numbered_image(7), "/nowhere/cat.jpg"], "pets")

    codes = [result.error.code if result.error else None for result in results]
    assert codes == ["image-invalid", None, "image-invalid"]
    assert [result.index for result in results] == [0, 1, 2]
    assert results[2].error is not None
    assert "/nowhere/cat.jpg cannot be read: No such file" in results[2].error.detail


def test_images_that_are_all_bad_have_their_own_errors(client: Client) -> None:
    results = client.classify([b"bad", b"worse"], "pets")

    assert [(r.index, r.error is not None) for r in results] == [(0, True), (1, True)]


def test_an_image_beyond_the_services_limit_is_not_even_sent(
    service: FakeService, client: Client
) -> None:
    with pytest.raises(RequestTooLarge, match=r"300,000 bytes; .* requests of at most 200,000"):
        client.classify(b"x" * 300_000, "pets")

    assert service.behavior.images_per_request == []


def test_a_call_without_a_task_is_rejected_before_any_request(client: Client) -> None:
    with pytest.raises(RequestInvalid, match="No task was named"):
        client.classify(numbered_image(1), [])


@pytest.mark.parametrize(
    "url",
    [
        "localhost:3000",
        "ftp://localhost",
        "",
        "http://",
        "http://no host",
        "http://h:x",
        "http://h:99999",
    ],
)
def test_an_incomplete_url_is_rejected(url: str) -> None:
    with pytest.raises(ConfigInvalid, match="Give the full URL"):
        Client(url)


def test_a_service_that_is_not_there_says_where_and_what_to_do(service: FakeService) -> None:
    service.stop()

    with (
        Client(service.url, retries=1) as client,
        pytest.raises(ServiceUnreachable, match=rf"{service.url} .*tried 2 times.*bentoml serve"),
    ):
        client.info()


def test_a_proxys_refusal_is_understood(service: FakeService) -> None:
    service.behavior.faults.append(HTMLResponse("slow down", 429, {"Retry-After": "7"}))

    with Client(service.url, retries=0) as client, pytest.raises(Overloaded) as caught:
        client.info()

    assert caught.value.retry_after_s == 7.0


def test_a_closed_client_says_so(service: FakeService) -> None:
    client = Client(service.url)
    client.close()
    client.close()

    with pytest.raises(RuntimeError, match="closed"):
        client.info()
