"""A service with trusted keys: whichever way a prompt file comes, it has to be signed."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("cryptography", reason="the extra signing is not installed")

from prompt_serve.cli.main import main as command
from prompt_serve.prompts.prompt_file import version_of
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.tasks.bulk import without_features
from prompt_serve.service.tasks.registry_export import export_registry
from prompt_serve.signing.keys import SigningKey, generate_key, read_signing_key
from prompt_serve.signing.signature import remove_signature, sign
from tests.service.process import Served, environment, refused_start, service

pytestmark = [pytest.mark.serve, pytest.mark.slow]

ZIP = {"Content-Type": "application/zip"}
NAMES = ("pets", "cars", "trees", "birds", "ships")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trusted")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, SigningKey]:
    """Keys by their names; the service trusts ``ours`` and ``next``, and no longer ``former``."""
    made = {}
    for name in ("ours", "next", "former", "theirs"):
        generate_key(folder / name, name)
        made[name] = read_signing_key(folder / name)
    (folder / "trusted_keys").write_text(
        f"{made['ours'].public.line}\n{made['next'].public.line}\n"
        f"@revoked {made['former'].public.line}\n"
    )
    return made


@pytest.fixture(scope="module")
def files(served: Served) -> dict[str, bytes]:
    """Unsigned prompt files by the names of their tasks, in two versions: ``pets`` and ``pets 2``.

    Made by a service of the same backbone that requires no signatures.
    """
    found = {}
    for name in NAMES:
        for version in ("", " 2"):
            body = {"name": name, "class_names": [f"a {name}{version}", "another"]}
            httpx.post(f"{served.url}/v1/tasks", json=body, timeout=60).raise_for_status()
            url = f"{served.url}/v1/tasks/{name}/file"
            found[name + version] = httpx.get(url, timeout=60).content
        httpx.delete(f"{served.url}/v1/tasks/{name}", timeout=60).raise_for_status()
    return found


@pytest.fixture(scope="module")
def trusting(
    tiny_bundle: Path, folder: Path, keys: dict[str, SigningKey], files: dict[str, bytes]
) -> Iterator[httpx.Client]:
    home = folder / "home"
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    # Stored before signatures were required, and pointed at the file of another one since.
    for name in ("old", "pets"):
        Registry(database).put(without_features(name, files["pets"]))
    database.close()
    with (
        service(
            home,
            tiny_bundle,
            trusted_keys=str(folder / "trusted_keys"),
            database_url=f"sqlite:///{folder / 'registry.db'}",
        ) as running,
        httpx.Client(base_url=f"{running.url}/v1", timeout=60) as client,
    ):
        yield client


def refusal(answer: httpx.Response, *parts: str) -> None:
    """Check that an answer is a refusal that has the parts in its text."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "signature-invalid"), body
    for part in parts:
        assert part in body["detail"]


def zip_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{name}.safetensors", data)
    return file.getvalue()


def export_of(tmp_path: Path, tasks: dict[str, bytes]) -> bytes:
    """Return the export of a registry that requires no signatures."""
    database = Database(f"sqlite:///{tmp_path / 'other.db'}")
    registry = Registry(database)
    for name, data in tasks.items():
        new: NewTask = without_features(name, data)
        registry.put(new)
    data = b"".join(export_registry(registry))
    database.close()
    return data


@pytest.mark.parametrize("name", NAMES)
def test_a_signed_file_is_served_and_keeps_its_signature(
    name: str, trusting: httpx.Client, files: dict[str, bytes], keys: dict[str, SigningKey]
) -> None:
    for key in ("ours", "next"):
        signed = sign(files[name], keys[key])
        answer = trusting.put(f"/tasks/{name}", content=signed)
        assert answer.status_code in (200, 201), answer.text
        assert answer.json()["version"] == version_of(signed)
        assert trusting.get(f"/tasks/{name}/file").content == signed


@pytest.mark.parametrize("name", NAMES)
def test_other_files_are_refused(
    name: str, trusting: httpx.Client, files: dict[str, bytes], keys: dict[str, SigningKey]
) -> None:
    signed = sign(files[name], keys["ours"])
    trusting.put(f"/tasks/{name}", content=signed)
    trusted = str(keys["ours"].public)

    def put(data: bytes, under: str = name) -> httpx.Response:
        return trusting.put(f"/tasks/{under}", content=data)

    refusal(put(files[name]), "not signed", trusted)
    refusal(put(remove_signature(signed)), "not signed", trusted)
    refusal(put(sign(files[name], keys["theirs"])), keys["theirs"].public.id, trusted)
    refusal(put(sign(files[name], keys["former"])), "revoked", "former", trusted)
    changed = signed.replace(f"a {name}".encode(), f"A {name}".encode())
    assert changed != signed
    refusal(put(changed), "changed since")
    refusal(put(signed, under=f"not-{name}"), "signed as task", f"not-{name}")
    assert trusting.get(f"/tasks/{name}").json()["version"] == version_of(signed)


def test_a_task_from_class_names_has_no_signature(trusting: httpx.Client) -> None:
    body = {"name": "made", "class_names": ["a", "b"]}
    refusal(trusting.post("/tasks", json=body), "made", "--sign")


@pytest.mark.parametrize("atomic", [True, False])
def test_a_zip_takes_signed_files_only(
    atomic: bool, trusting: httpx.Client, files: dict[str, bytes], keys: dict[str, SigningKey]
) -> None:
    good = {name: sign(files[name], keys["ours"]) for name in NAMES}
    url = f"/tasks?atomic={str(atomic).lower()}"
    assert trusting.put(url, content=zip_of(good)).json()["served"] == len(NAMES)

    mixed = {**good, "cars": files["cars 2"], "trees": good["birds"]}
    answer = trusting.put(url, content=zip_of(mixed)).json()
    if atomic:
        errors = {error["name"]: error["code"] for error in answer["errors"]}
        assert errors == {"cars": "signature-invalid", "trees": "signature-invalid"}
    else:
        failed = {item["name"] for item in answer["items"] if item.get("error")}
        assert failed == {"cars", "trees"}
    for name in NAMES:
        assert trusting.get(f"/tasks/{name}").json()["version"] == version_of(good[name])


def test_an_import_takes_signed_files_only(
    trusting: httpx.Client, files: dict[str, bytes], keys: dict[str, SigningKey], tmp_path: Path
) -> None:
    good = {name: sign(files[f"{name} 2"], keys["next"]) for name in NAMES}
    mixed = {**good, "cars": files["cars"]}
    folders = [tmp_path / "mixed", tmp_path / "good"]
    for path in folders:
        path.mkdir()

    answer = trusting.post("/registry/import", content=export_of(folders[0], mixed), headers=ZIP)
    assert [error["code"] for error in answer.json()["errors"]] == ["signature-invalid"]
    answer = trusting.post("/registry/import", content=export_of(folders[1], good), headers=ZIP)
    assert answer.json()["served"] == len(NAMES)


def test_a_name_is_pointed_only_at_what_is_signed_for_it(
    trusting: httpx.Client, files: dict[str, bytes], keys: dict[str, SigningKey]
) -> None:
    versions = []
    for version in ("", " 2"):
        signed = sign(files[f"ships{version}"], keys["ours"])
        trusting.put("/tasks/ships", content=signed)
        versions.append(version_of(signed))
    unsigned = version_of(files["pets"])
    trusting.put("/tasks/pets", content=sign(files["pets"], keys["ours"]))

    # An old version that was signed may come back; signatures do not tell old from new.
    assert trusting.post("/tasks/ships/rollback").json()["version"] == versions[0]
    # One from before signatures were required may not, and no name serves another's file.
    refusal(trusting.post("/tasks/pets/rollback", json={"version": unsigned}), "not signed")
    refusal(trusting.put("/tasks/boats/alias", json={"of": "ships"}), "'ships'", "'boats'")
    refusal(trusting.put("/tasks/ships/alias", json={"of": "old"}), "not signed")


def test_a_key_is_revoked_while_the_service_runs(
    trusting: httpx.Client, folder: Path, files: dict[str, bytes], keys: dict[str, SigningKey]
) -> None:
    path = folder / "trusted_keys"
    before = path.read_text()
    signed = sign(files["birds"], keys["next"])
    trusting.put("/tasks/birds", content=signed).raise_for_status()
    trusting.put("/tasks/birds", content=sign(files["birds 2"], keys["ours"])).raise_for_status()
    try:
        path.write_text(f"{before}@revoked {keys['next'].public.line}\n")
        refusal(trusting.put("/tasks/birds", content=signed), "revoked", "next")
        refusal(
            trusting.post("/tasks/birds/rollback", json={"version": version_of(signed)}), "revoked"
        )
    finally:
        path.write_text(before)
    trusting.put("/tasks/birds", content=signed).raise_for_status()


def test_an_import_into_the_database_takes_signed_files_only(
    folder: Path,
    files: dict[str, bytes],
    keys: dict[str, SigningKey],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from click.testing import CliRunner

    monkeypatch.setenv("PROMPT_SERVE_TRUSTED_KEYS", str(folder / "trusted_keys"))
    export = tmp_path / "export.zip"
    database = f"sqlite:///{tmp_path / 'target.db'}"
    arguments = ["registry", "import", str(export), "--database", database]
    export.write_bytes(export_of(tmp_path, {"cars": files["cars"]}))
    refused = CliRunner().invoke(command, arguments)
    assert refused.exit_code == 2
    assert "is not signed" in refused.output

    (tmp_path / "other.db").unlink()
    export.write_bytes(export_of(tmp_path, {"cars": sign(files["cars"], keys["ours"])}))
    assert CliRunner().invoke(command, arguments).exit_code == 0


def test_a_service_without_its_trusted_keys_does_not_start(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    settings = environment(tmp_path, tiny_bundle, trusted_keys=str(tmp_path / "nowhere"))

    assert str(tmp_path / "nowhere") in refused_start(settings)
