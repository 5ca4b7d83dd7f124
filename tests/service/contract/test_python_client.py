"""A client that openapi-python-client generates from the served document."""

import base64
import importlib
import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.http.app import create_app
from prompt_serve.training.clip.backbone import Backbone
from tests.service.contract.documents import operations
from tests.service.process import Served
from tests.service.prompts import learned_prompt, picture
from tests.service.secured_service import SecuredService

pytestmark = [pytest.mark.serve, pytest.mark.slow]
PACKAGE = "generated_prompt_serve"


class Generated:
    """The modules of the generated package, by short names."""

    def __init__(self) -> None:
        self.client: Any = importlib.import_module(PACKAGE)
        self.models: Any = importlib.import_module(f"{PACKAGE}.models")
        self.types: Any = importlib.import_module(f"{PACKAGE}.types")

    def operation(self, tag: str, name: str) -> Any:
        return importlib.import_module(f"{PACKAGE}.api.{tag}.{name}")

    def connect(self, service: Served, key: str | None = None) -> Any:
        """Return a client; it is a context manager."""
        url = f"{service.url}/v1"
        if key is None:
            return self.client.Client(base_url=url)
        return self.client.AuthenticatedClient(base_url=url, token=key)

    def file(self, data: bytes, name: str = "a.png") -> Any:
        return self.types.File(payload=io.BytesIO(data), file_name=name, mime_type="image/png")


@pytest.fixture(scope="module")
def generated(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    folder = tmp_path_factory.mktemp("client")
    config = folder / "config.yaml"
    config.write_text("post_hooks: []")  # by default it calls ruff
    subprocess.run(
        [
            sys.executable, "-m", "openapi_python_client", "generate",
            "--url", f"{served.url}/v1/openapi.json", "--config", config,
            "--meta", "none", "--output-path", folder / PACKAGE,
        ],
        check=True,
        timeout=120,
    )  # fmt: skip
    sys.path.insert(0, str(folder))
    yield Generated()
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture(params=["no-keys", "infer-key", "admin-key"])
def caller(
    request: pytest.FixtureRequest, generated: Generated, served: Served, secured: SecuredService
) -> Iterator[Any]:
    """A client: of a service without keys, and with each kind of key."""
    key = {"infer-key": secured.infer, "admin-key": secured.admin}.get(request.param)
    with generated.connect(served if key is None else secured.served, key) as client:
        yield client


@pytest.fixture(scope="module")
def task(
    generated: Generated, served: Served, secured: SecuredService, tiny_backbone: Backbone
) -> str:
    """Name of a task that both services have, uploaded by the generated client."""
    upload = generated.operation("tasks", "upload_task").sync_detailed
    data = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog", "rabbit"]))
    for service, key in ((served, None), (secured.served, secured.admin)):
        with generated.connect(service, key) as client:
            answer = upload("generated", client=client, body=generated.file(data))
        assert answer.status_code == 201, answer.content
        assert answer.parsed.class_names == ["cat", "dog", "rabbit"]
    return "generated"


def test_every_operation_is_generated(generated: Generated) -> None:
    for _, _, operation in operations(create_app().openapi()):
        tag, name = operation["tags"][0], operation["operationId"]
        assert callable(generated.operation(tag, name).sync_detailed), name


@pytest.mark.parametrize("form", ["json", "json-minimal", "data-uri", "files", "bytes"])
def test_it_classifies(generated: Generated, caller: Any, task: str, form: str) -> None:
    data = picture()
    text = base64.b64encode(data).decode()
    models = generated.models
    forms: dict[str, tuple[Any, dict[str, Any]]] = {
        "json": (models.ClassifyRequest(images=[text], tasks=[task], top_k=2), {}),
        "json-minimal": (models.ClassifyRequest(images=[text]), {"task": [task]}),
        "data-uri": (
            models.ClassifyRequest(images=[f"data:image/png;base64,{text}"], tasks=[task]),
            {"top_k": 1},
        ),
        "files": (models.ClassifyFilesBody(image=[generated.file(data)], task=[task]), {}),
        "bytes": (generated.file(data), {"task": [task], "top_k": 3}),
    }
    body, query = forms[form]

    answer = generated.operation("inference", "classify").sync(client=caller, body=body, **query)

    (result,) = answer.results
    (prediction,) = result.predictions
    assert prediction.task == task
    assert len(prediction.classes) == {"json": 2, "data-uri": 1}.get(form, 3)
    assert {one.class_name for one in prediction.classes} <= {"cat", "dog", "rabbit"}


def test_scores_of_embeddings_are_those_of_the_images(
    generated: Generated, caller: Any, task: str
) -> None:
    models = generated.models
    images = [picture(seed) for seed in range(3)]
    texts = [base64.b64encode(image).decode() for image in images]
    inference = {
        name: generated.operation("inference", name).sync for name in ("classify", "embed", "score")
    }
    parts = [generated.file(image) for image in images]

    from_json = inference["embed"](client=caller, body=models.EmbedRequest(images=texts))
    from_files = inference["embed"](client=caller, body=models.EmbedFilesBody(image=parts))
    rows = [result.embedding for result in from_json.results]
    scored = inference["score"](
        client=caller,
        body=models.ScoreRequest(embeddings=rows, tasks=[task], fingerprint=from_json.fingerprint),
    )
    classified = inference["classify"](
        client=caller, body=models.ClassifyRequest(images=texts, tasks=[task])
    )

    assert [result.embedding for result in from_files.results] == rows
    for of_embedding, of_image in zip(scored.results, classified.results, strict=True):
        (ours,), (theirs,) = of_embedding.predictions, of_image.predictions
        assert [c.class_name for c in ours.classes] == [c.class_name for c in theirs.classes]
        for one, other in zip(ours.classes, theirs.classes, strict=True):
            # The embedding went through float32 as decimal text, which is exact, and a rescaling.
            assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_it_lists_uploads_and_rolls_back(
    generated: Generated,
    caller: Any,
    secured: SecuredService,
    tiny_backbone: Backbone,
    task: str,
) -> None:
    listed = generated.operation("tasks", "list_tasks").sync(client=caller, search=task)
    assert task in [one.name for one in listed.tasks]

    upload = generated.operation("tasks", "upload_task").sync
    files = [to_bytes(learned_prompt(tiny_backbone, ["a", "b"], seed=seed)) for seed in (1, 2)]
    answers = [upload("rolled-back", client=caller, body=generated.file(data)) for data in files]
    roll_back = generated.operation("tasks", "roll_back_task").sync
    back = roll_back("rolled-back", client=caller, body=generated.models.Rollback())

    if getattr(caller, "token", None) == secured.infer:
        for refused in (*answers, back):
            assert isinstance(refused, generated.models.Problem)
            assert (refused.status, refused.code) == (403, "not-allowed")
    else:
        assert back.version == answers[0].version != answers[1].version
        file = generated.operation("tasks", "get_task_file").sync("rolled-back", client=caller)
        assert file.payload.read() == files[0]


@pytest.mark.parametrize("key", [None, "ps_unknown", "x", "ps_0123456789abcdef_x", "admin"])
def test_a_missing_or_unknown_key_is_a_documented_problem(
    generated: Generated, secured: SecuredService, key: str | None
) -> None:
    body = generated.models.ClassifyRequest(images=["AA=="], tasks=["generated"])
    with generated.connect(secured.served, key) as client:
        answers = [
            generated.operation("inference", "classify").sync_detailed(client=client, body=body),
            generated.operation("tasks", "list_tasks").sync_detailed(client=client),
            generated.operation("service", "info").sync_detailed(client=client),
        ]

    for answer in answers:
        assert answer.status_code == 401
        assert isinstance(answer.parsed, generated.models.Problem)
        assert answer.parsed.code == "not-authenticated"
