"""The paths that people try first lead to the page and the documents."""

import httpx
import pytest

from tests.service.process import Served

pytestmark = pytest.mark.serve


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/", "/v1/ui"),
        ("/ui", "/v1/ui"),
        ("/v1", "/v1/ui"),
        ("/v1/", "/v1/ui"),
        ("/docs", "/v1/docs"),
        ("/openapi.json", "/v1/openapi.json"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_first_guesses_lead_to_the_page_and_its_documents(
    served: Served, method: str, path: str, target: str
) -> None:
    with httpx.Client(base_url=served.url) as http:
        answer = http.request(method, path)
        assert answer.status_code == 307
        assert httpx.URL(f"{served.url}{path}").join(answer.headers["location"]).path == target
        followed = http.request("GET", path, follow_redirects=True)
    assert followed.status_code == 200
    assert followed.url.path == target


def test_a_proxy_may_serve_all_under_a_prefix(served: Served) -> None:
    location = httpx.get(f"{served.url}/").headers["location"]
    assert httpx.URL("https://example.org/models/").join(location).path == "/models/v1/ui"


def test_bentomls_page_has_its_files(served: Served) -> None:
    with httpx.Client(base_url=served.url, follow_redirects=True) as http:
        page = http.get("/bentoml")
        assert page.url.path == "/bentoml/"
        assert "<html" in page.text
        assert http.get("/bentoml/docs.json").json()["info"]["title"] == "prompt_serve"


def test_only_reads_are_redirected(served: Served) -> None:
    assert httpx.post(f"{served.url}/").status_code in (404, 405)


def test_the_start_names_the_page(served: Served) -> None:
    assert f"Page: {served.url}/v1/ui  API: {served.url}/v1/docs" in served.log.read_text()
