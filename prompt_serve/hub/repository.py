"""Push a prompt file to a repository of the Hugging Face Hub, and pull one.

The Hub's own client does the transfers, with its own settings: ``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_OFFLINE`` and proxies.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_serve.errors import HubFailed, HubRefused, PromptFileInvalid, counted, did_you_mean
from prompt_serve.files import atomic_file
from prompt_serve.hub.card import GENERATED, model_card
from prompt_serve.prompts.prompt_file import (
    MAX_FILE_BYTES,
    Prompt,
    from_bytes,
    read_prompt_file,
    version_of,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

SUFFIX = ".safetensors"
CARD = "README.md"
_FILE_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]*{re.escape(SUFFIX)}")
_ENDPOINT = "HF_ENDPOINT"
_LOG_IN = "Set HF_TOKEN, or log in: hf auth login"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A prompt file in a repository."""

    repo_id: str
    file_name: str
    commit: str
    url: str  # of the repository
    card_kept: bool  # the card of its author was left as it is


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A prompt file that was downloaded and verified."""

    repo_id: str
    file_name: str
    commit: str
    data: bytes
    prompt: Prompt


def push(
    path: Path,
    repo_id: str,
    *,
    file_name: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    base_model: str | None = None,
    license_id: str | None = None,
) -> Pushed:
    """Commit a prompt file and its model card; create the repository if there is none.

    Args:
        path: prompt file; it is read and checked first.
        repo_id: repository, ``user/name``.
        file_name: of the file in the repository; None: that of ``path``.
        revision: branch; None: the main one.
        private: of a new repository; None: as the account's settings say.
        message: of the commit.
        base_model: see ``model_card``.
        license_id: see ``model_card``.

    Raises:
        PromptFileInvalid: the file is no prompt file.
        HubRefused: there is no token, it does not allow this, or a name is wrong.
        HubFailed: the Hub cannot be reached.
    """
    prompt, data = read_prompt_file(path), path.read_bytes()
    file_name = path.name if file_name is None else file_name
    if not _FILE_NAME.fullmatch(file_name):
        raise HubRefused(
            f"{file_name!r} cannot be the name of a prompt file on the Hub; expected letters, "
            f"digits, '.', '_' and '-', and the suffix {SUFFIX}. Give a name with --file-name."
        )
    with _hub_errors(repo_id):
        from huggingface_hub import CommitOperationAdd, get_token

        if get_token() is None:
            raise HubRefused(f"There is no token to push with. {_LOG_IN}")
        api = _api()
        api.create_repo(repo_id, private=private, exist_ok=True)
        kept = _card_is_the_authors(api, repo_id, revision)
        card = model_card(
            prompt,
            file_name=file_name,
            file_bytes=len(data),
            version=version_of(data),
            repo_id=repo_id,
            base_model=base_model,
            license_id=license_id,
        )
        files = {file_name: data} | ({} if kept else {CARD: card.encode()})
        commit = api.create_commit(
            repo_id,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                for name, content in files.items()
            ],
            commit_message=message or f"Push {file_name} with prompt-serve",
            revision=revision,
        )
    return Pushed(
        repo_id=repo_id,
        file_name=file_name,
        commit=commit.oid,
        url=f"{api.endpoint}/{repo_id}",
        card_kept=kept,
    )


def pull(repo_id: str, *, file_name: str | None = None, revision: str | None = None) -> Pulled:
    """Download a prompt file of a repository and verify it.

    Args:
        repo_id: repository, ``user/name``.
        file_name: of the file; None: the only one with the suffix ``.safetensors``.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        PromptFileInvalid: the file is no prompt file.
        HubRefused: there is no such repository, revision or file, or the token does not allow it.
        HubFailed: the Hub cannot be reached, or the file was damaged on the way.
    """
    with _hub_errors(repo_id), tempfile.TemporaryDirectory() as folder:
        api = _api()
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or ()}
        file_name = _only_prompt(repo_id, list(files)) if file_name is None else file_name
        if file_name not in files:
            raise HubRefused(
                f"There is no file {file_name!r} in {repo_id}.{did_you_mean(file_name, files)}"
            )
        if (size := files[file_name].size or 0) > MAX_FILE_BYTES:
            raise PromptFileInvalid(
                f"{file_name} in {repo_id} has {counted(size, 'byte')}; prompt files have at most "
                f"{MAX_FILE_BYTES:,}."
            )
        path = api.hf_hub_download(repo_id, file_name, revision=info.sha, local_dir=folder)
        data = Path(path).read_bytes()
        _check_digest(files[file_name], data)
    try:
        prompt = from_bytes(data)
    except PromptFileInvalid as error:
        raise PromptFileInvalid(
            f"{file_name} in {repo_id}: {error.message}", **error.facts
        ) from error
    return Pulled(
        repo_id=repo_id, file_name=file_name, commit=info.sha or "", data=data, prompt=prompt
    )


def write(pulled: Pulled, path: Path) -> None:
    """Write a pulled prompt file atomically.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(pulled.data)


def _api() -> "HfApi":
    """Return the Hub's client; the endpoint is read now, and not when it was imported."""
    from huggingface_hub import HfApi

    from prompt_serve import __version__

    return HfApi(
        endpoint=os.environ.get(_ENDPOINT) or None,
        library_name="prompt-serve",
        library_version=__version__,
    )


def _check_digest(file: "RepoSibling", data: bytes) -> None:
    """Raise HubFailed if a download is not the file of the commit; the client checks its size."""
    if file.lfs is not None:
        expected, found = file.lfs.sha256, hashlib.sha256(data).hexdigest()
    else:
        blob = b"blob %d\0" % len(data) + data  # as git hashes a file
        expected = file.blob_id or ""
        found = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    if expected != found:
        raise HubFailed(
            f"{file.rfilename} was damaged on the way: its digest is {found}, that of the commit "
            f"{expected}. Pull it again."
        )


def _only_prompt(repo_id: str, names: Sequence[str]) -> str:
    prompts = [name for name in names if name.endswith(SUFFIX)]
    if not prompts:
        raise HubRefused(f"There is no prompt file ({SUFFIX}) in {repo_id}.")
    if len(prompts) > 1:
        raise HubRefused(
            f"{repo_id} has {len(prompts)} prompt files; name one with --file: "
            f"{', '.join(prompts[:10])}{', ...' if len(prompts) > 10 else ''}"
        )
    return prompts[0]


def _card_is_the_authors(api: "HfApi", repo_id: str, revision: str | None) -> bool:
    """Return True if the repository has a card that was not written here."""
    if not api.file_exists(repo_id, CARD, revision=revision):
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder)
        return GENERATED not in Path(path).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Raise the dozen types of the Hub's client as two of ours, with the way out."""
    from huggingface_hub import errors

    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # of httpx2
    if repo_id.count("/") != 1:
        raise HubRefused(f"{repo_id!r} is not a repository. Expected user/name.")
    try:
        yield
    except errors.HFValidationError as error:
        raise HubRefused(
            f"{repo_id!r} is not a repository. Expected user/name: {_one_line(error)}"
        ) from error
    except errors.GatedRepoError as error:
        raise HubRefused(
            f"{repo_id} asks its users to accept its terms first: {_endpoint()}/{repo_id}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubRefused(
            f"There is no repository {repo_id} on {_endpoint()}, or it is private and the token "
            f"does not allow to read it. {_LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubRefused(
            f"{repo_id} has no such revision: name a branch, tag or commit."
        ) from error
    except errors.LocalEntryNotFoundError as error:  # its name for a host that does not answer
        raise _unreachable(error) from error
    except errors.EntryNotFoundError as error:
        raise HubRefused(f"There is no such file in {repo_id}.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or _one_line(error)
        if status in (401, 403):
            raise HubRefused(
                f"The token does not allow this on {repo_id} ({status}: {said}). {_LOG_IN}, with "
                f"write access to push."
            ) from error
        kind = HubRefused if 400 <= status < 500 and status != 429 else HubFailed
        raise kind(f"{_endpoint()} answered {status} for {repo_id}: {said}") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubFailed(
            f"{_endpoint()} was not asked for {repo_id}: HF_HUB_OFFLINE is set."
        ) from error
    except (transport, ConnectionError) as error:
        raise _unreachable(error) from error
    except (RuntimeError, ValueError) as error:  # of an upload, or of an answer of another form
        raise HubFailed(
            f"{_endpoint()} did not take or send {repo_id}: {_one_line(error.__cause__ or error)}"
        ) from error


def _unreachable(error: BaseException) -> HubFailed:
    return HubFailed(
        f"{_endpoint()} cannot be reached: {_one_line(error.__cause__ or error)} Check the "
        f"network, and {_ENDPOINT} if it is set."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get(_ENDPOINT) or constants.ENDPOINT


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{text}."
