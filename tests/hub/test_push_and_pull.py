"""``prompt-serve push`` and ``pull``: the Hub's own client against a stand-in of the Hub."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prompt_serve.cli.hub import base_model_of
from prompt_serve.prompts.prompt_file import MAX_FILE_BYTES, version_of
from tests.cli.conftest import Run
from tests.golden import GOLDEN, path_of
from tests.hub.stand_in import READ_TOKEN, Hub, Repo

GOLDEN_NAMES = list(GOLDEN)


def prompt_bytes(name: str = GOLDEN_NAMES[0]) -> bytes:
    return path_of(name).read_bytes()


def repo_of(hub: Hub, files: dict[str, bytes], **fields: Any) -> Repo:
    hub.repos["me/pets"] = repo = Repo(**fields)
    repo.commit(files, "by hand")
    return repo


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_kind_of_prompt_goes_there_and_back(hub: Hub, run: Run, name: str) -> None:
    pushed = run("push", path_of(name), "me/pets", "--file-name", "pets.safetensors")
    pulled = run("pull", "me/pets")

    assert pushed.exit_code == 0, pushed.output
    assert pulled.exit_code == 0, pulled.output
    assert Path("pets.safetensors").read_bytes() == prompt_bytes(name)
    assert set(hub.repos["me/pets"].files) == {"pets.safetensors", "README.md"}
    assert f"{hub.url}/me/pets: pets.safetensors, commit " in pushed.output


# The Hub's client uploads large files by a parameter that its HTTP client would rename.
OF_THE_CLIENT = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@OF_THE_CLIENT
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_commit_has_file_and_card_however_the_hub_stores_them(
    hub: Hub, run: Run, suffix: str, n: int
) -> None:
    hub.lfs_suffix = suffix  # the Hub itself keeps .safetensors in its large file storage
    for name in GOLDEN_NAMES[:n]:
        done = run("push", path_of(name), "me/pets", "--message", f"Version {name}", "--json")
        assert done.exit_code == 0, done.output

    repo, document = hub.repos["me/pets"], json.loads(done.stdout)
    assert repo.messages == ["initial commit", *(f"Version {name}" for name in GOLDEN_NAMES[:n])]
    assert document == {
        "repo_id": "me/pets",
        "file_name": path_of(GOLDEN_NAMES[n - 1]).name,
        "commit": list(repo.commits)[-1],
        "url": f"{hub.url}/me/pets",
        "card_written": True,
    }
    assert repo.files[document["file_name"]] == prompt_bytes(GOLDEN_NAMES[n - 1])
    assert (suffix == ".safetensors") == bool(hub.objects)
    pulled = run("pull", "me/pets", "--file", document["file_name"], "-o", "here.safetensors")
    assert pulled.exit_code == 0, pulled.output
    assert Path("here.safetensors").read_bytes() == repo.files[document["file_name"]]
    assert any("prompt-serve/" in agent for agent in hub.agents)


@pytest.mark.parametrize(
    ("option", "private"), [([], False), (["--public"], False), (["--private"], True)]
)
def test_a_new_repository_is_as_visible_as_asked(
    hub: Hub, run: Run, option: list[str], private: bool
) -> None:
    assert run("push", path_of("deep"), "me/pets", *option).exit_code == 0
    assert run("push", path_of("dense_class_specific"), "me/pets").exit_code == 0  # is kept so

    assert hub.repos["me/pets"].private == private


def test_revisions_are_branches_and_commits(hub: Hub, run: Run) -> None:
    first, second, third = (prompt_bytes(name) for name in GOLDEN_NAMES[:3])
    repo = repo_of(hub, {"a.safetensors": first})
    commit = repo.branches["main"]
    repo.branches["next"] = commit
    repo.commit({"a.safetensors": second}, "second")
    path = Path("a.safetensors")
    path.write_bytes(third)
    assert run("push", path, "me/pets", "--revision", "next").exit_code == 0

    for revision, expected in {commit: first, "main": second, "next": third, "": second}.items():
        option = ["--revision", revision] if revision else []
        done = run("pull", "me/pets", *option, "-o", "out/b.safetensors", "--json")
        document = json.loads(done.stdout)
        assert Path("out/b.safetensors").read_bytes() == expected
        assert document["commit"] == repo.branches.get(revision or "main", revision)
        assert document["version"] == version_of(expected)
        assert (document["file_name"], document["file"]) == ("a.safetensors", "out/b.safetensors")


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        (None, False),
        ("# Mine\n", True),
        ("---\ntags: [x]\n---\n# Mine\n", True),
        ("", True),
        ("not UTF-8: \xe9", True),
    ],
)
def test_a_card_of_somebody_else_is_kept(hub: Hub, run: Run, card: str | None, kept: bool) -> None:
    data = None if card is None else card.encode("latin-1")
    repo = repo_of(hub, {} if data is None else {"README.md": data})

    for name in GOLDEN_NAMES[:2]:
        done = run("push", path_of(name), "me/pets", "--file-name", "a.safetensors")
        assert done.exit_code == 0, done.output
        assert ("has a model card of its own" in done.output) == kept

    assert (repo.files["README.md"] == data) == kept
    assert repo.files["a.safetensors"] == prompt_bytes(GOLDEN_NAMES[1])
    if not kept:  # one that was written here follows the file
        assert version_of(prompt_bytes(GOLDEN_NAMES[1])) in repo.files["README.md"].decode()


NOT_PROMPTS = {
    "empty": b"",
    "text": b"Buy milk.\n",
    "cut off": prompt_bytes()[:-3],
    "weights": (8).to_bytes(8, "little") + b"{}      ",
    "zip": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("content", NOT_PROMPTS.values(), ids=list(NOT_PROMPTS))
def test_what_is_no_prompt_file_is_neither_pushed_nor_written(
    hub: Hub, run: Run, content: bytes
) -> None:
    repo = repo_of(hub, {"bad.safetensors": content})
    Path("bad.safetensors").write_bytes(content)
    Path("kept.safetensors").write_bytes(b"before")

    pushed = run("push", "bad.safetensors", "me/new")
    pulled = run("pull", "me/pets", "-o", "kept.safetensors")

    assert (pushed.exit_code, pulled.exit_code) == (2, 2)
    assert "bad.safetensors in me/pets: " in pulled.stderr
    assert "me/new" not in hub.repos
    assert len(repo.commits) == 2
    assert Path("kept.safetensors").read_bytes() == b"before"
    assert sorted(path.name for path in Path().iterdir()) == ["bad.safetensors", "kept.safetensors"]


@OF_THE_CLIENT
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("damages", [1, 500, -1])
def test_a_file_that_was_damaged_on_the_way_is_not_written(
    hub: Hub, run: Run, suffix: str, damages: int
) -> None:
    hub.lfs_suffix = suffix
    assert run("push", path_of("deep"), "me/pets").exit_code == 0
    hub.damages = damages % path_of("deep").stat().st_size

    done = run("pull", "me/pets")

    assert done.exit_code == 1, done.output
    assert "deep.safetensors was damaged on the way: its digest is " in done.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_missing_client_is_said(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    done = run(*(["push", path_of("deep")] if command == "push" else ["pull"]), "me/pets")

    assert done.exit_code == 1
    assert "pip install 'prompt-serve[hub]'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "repo"),
    [
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai"),
        ("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("ViT-B-16/openai@weights.pt", None),
        ("ViT-B-16/random", None),
        ("nonsense/openai", None),
        ("embedded", None),
    ],
)
def test_the_base_model_is_the_repository_that_open_clip_loads(
    backbone: str, repo: str | None
) -> None:
    pytest.importorskip("open_clip")

    assert base_model_of(backbone) == repo


def test_a_file_that_is_too_large_is_not_downloaded(hub: Hub, run: Run) -> None:
    repo_of(hub, {"model.safetensors": bytes(MAX_FILE_BYTES + 1)})

    done = run("pull", "me/pets")

    assert done.exit_code == 2
    assert "prompt files have at most 67,108,864" in done.stderr
    assert not any("resolve" in request for request in hub.requests)


WRONG = {
    "pull me/none": (2, "There is no repository me/none on HUB, or it is private"),
    "pull me/two": (2, "me/two has 2 prompt files; name one with --file: a.safetensors, b.saf"),
    "pull me/two --file c.safetensors": (2, "no file 'c.safetensors' in me/two. Did you mean"),
    "pull me/empty": (2, "There is no prompt file (.safetensors) in me/empty."),
    "pull me/two --revision v9": (2, "me/two has no such revision: name a branch, tag or commit."),
    "pull me/gated": (2, "me/gated asks its users to accept its terms first: HUB/me/gated"),
    "pull me/pe*ts": (2, "'me/pe*ts' is not a repository. Expected user/name"),
    "pull a/b/c": (2, "'a/b/c' is not a repository. Expected user/name"),
    "push FILE you/pets": (2, "The token does not allow this on you/pets (403: "),
    "push FILE me/two --revision v9": (2, "me/two has no such revision"),
    "pull pets": (2, "'pets' is not a repository. Expected user/name."),
    "push FILE pets": (2, "'pets' is not a repository. Expected user/name."),
    "push FILE me//pets": (2, "'me//pets' is not a repository. Expected user/name"),
    "push FILE me/pets --file-name pets.bin": (2, "'pets.bin' cannot be the name of a prompt"),
    "push FILE me/pets --file-name ../x.safetensors": (2, "cannot be the name of a prompt file"),
}


@pytest.mark.parametrize(("line", "expected"), WRONG.items(), ids=list(WRONG))
def test_refusals_are_one_line_that_says_what_to_do(
    hub: Hub, run: Run, line: str, expected: tuple[int, str]
) -> None:
    hub.repos["me/empty"], hub.repos["me/gated"], hub.repos["me/two"] = (
        Repo(),
        Repo(gated=True),
        Repo(),
    )
    hub.repos["me/two"].commit(dict.fromkeys(("a.safetensors", "b.safetensors"), b"x"), "")
    before = {name: dict(repo.branches) for name, repo in hub.repos.items()}

    done = run(*line.replace("FILE", str(path_of("deep"))).split())

    status, said = expected
    assert done.exit_code == status, done.output
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    assert said.replace("HUB", hub.url) in done.stderr
    assert {name: dict(repo.branches) for name, repo in hub.repos.items()} == before
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("token", [None, "", "hf_unknown", READ_TOKEN])
def test_a_push_needs_a_token_that_may_write(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)

    done = run("push", path_of("deep"), "me/pets")

    assert done.exit_code == 2, done.output
    assert "Set HF_TOKEN, or log in: hf auth login" in done.stderr
    assert hub.repos == {}


@pytest.mark.parametrize("token", [None, "hf_unknown", READ_TOKEN])
def test_a_private_repository_is_for_those_who_may_read_it(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    repo_of(hub, {"a.safetensors": prompt_bytes()}, private=True)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)

    done = run("pull", "me/pets")

    if token == READ_TOKEN:
        assert Path("a.safetensors").read_bytes() == prompt_bytes()
    else:
        assert done.exit_code == 2
        assert "or it is private and the token does not allow to read it" in done.stderr
        assert list(Path().iterdir()) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_hub_that_fails_is_exit_code_1(hub: Hub, run: Run, command: str, status: int) -> None:
    hub.failing = status

    done = run(*(["push", path_of("deep")] if command == "push" else ["pull"]), "me/pets")

    assert done.exit_code == 1, done.output
    assert f"{hub.url} answered {status} for me/pets: " in done.stderr


@OF_THE_CLIENT
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_an_upload_that_fails_is_exit_code_1_and_no_commit(hub: Hub, run: Run, status: int) -> None:
    hub.lfs_suffix, hub.failing_upload = ".safetensors", status

    done = run("push", path_of("deep"), "me/pets")

    assert done.exit_code == 1, done.output
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    assert f"{hub.url} did not take or send me/pets: " in done.stderr
    assert hub.repos["me/pets"].messages == ["initial commit"]


@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_hub_that_cannot_be_reached_is_exit_code_1(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    done = run(*(["push", path_of("deep")] if command == "push" else ["pull"]), "me/pets")

    assert done.exit_code == 1, done.output
    assert "http://127.0.0.1:9 cannot be reached: " in done.stderr
    assert "HF_ENDPOINT" in done.stderr


@pytest.mark.parametrize("command", ["push", "pull"])
def test_offline_is_exit_code_1(hub: Hub, command: str) -> None:
    # The client reads the variable when it is imported.
    words = ["push", str(path_of("deep"))] if command == "push" else ["pull"]
    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", *words, "me/pets"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert hub.requests == []


def test_a_file_that_cannot_be_written_is_found_before_the_download(hub: Hub, run: Run) -> None:
    repo_of(hub, {"a.safetensors": prompt_bytes()})

    done = run("pull", "me/pets", "-o", "/proc/none/a.safetensors")

    assert done.exit_code == 2
    assert hub.requests == []
