"""``prompt-serve push`` and ``pull``: prompt files on the Hugging Face Hub."""

import importlib.util
from pathlib import Path

import click

from prompt_serve.cli.facts import Report, json_option
from prompt_serve.cli.output_file import OutputFile
from prompt_serve.cli.user_path import UserPath
from prompt_serve.errors import counted


@click.command()
@click.argument("prompt_file", metavar="PROMPT", type=UserPath(exists=True, dir_okay=False))
@click.argument("repo_id", metavar="USER/NAME")
@click.option("--file-name", help="Name in the repository. [default: that of the file]")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to. [default: main]")
@click.option(
    "--private/--public", default=None,
    help="Visibility of a new repository. [default: that of the account's settings]",
)  # fmt: skip
@click.option("--message", help="Message of the commit.")
@click.option(
    "--base-model", metavar="USER/NAME",
    help="Repository of the backbone on the Hub, for the model card. [default: what open_clip, if "
    "it is installed, loads for its name]",
)  # fmt: skip
@click.option(
    "--license", "license_id", metavar="NAME",
    help="License for the model card, as the Hub names it, such as apache-2.0.",
)  # fmt: skip
@json_option
def push(prompt_file: Path, repo_id: str, as_json: bool, **options: str | bool | None) -> None:
    """Push a prompt file and its model card to the Hugging Face Hub.

    The repository is created if there is none. The card is written from the file: classes, backbone
    and what was measured at training. A card that somebody else wrote is kept. HF_TOKEN (or hf auth
    login) has the token, HF_ENDPOINT the address of another hub.

    \b
    prompt-serve push pets.safetensors me/pets
    prompt-serve push pets.safetensors me/pets --private --license apache-2.0
    """
    from prompt_serve.hub.repository import push
    from prompt_serve.prompts.prompt_file import read_prompt_file

    options["base_model"] = options["base_model"] or base_model_of(
        read_prompt_file(prompt_file).backbone.id
    )
    pushed = push(prompt_file, repo_id, **options)  # type: ignore[arg-type]  # click's values
    kept = [f"Note: {repo_id} has a model card of its own, which was kept."]
    Report(
        {
            "repo_id": pushed.repo_id,
            "file_name": pushed.file_name,
            "commit": pushed.commit,
            "url": pushed.url,
            "card_written": not pushed.card_kept,
        },
        [
            *(kept if pushed.card_kept else []),
            f"{pushed.url}: {pushed.file_name}, commit {pushed.commit}",
        ],
    ).print(as_json=as_json)


@click.command()
@click.argument("repo_id", metavar="USER/NAME")
@click.option(
    "--out", "-o", type=OutputFile(),
    help="File to write; an existing one is replaced. [default: the name in the repository]",
)  # fmt: skip
@click.option(
    "--file", "file_name", metavar="NAME",
    help="File in the repository, if it has several prompt files.",
)  # fmt: skip
@click.option(
    "--revision", metavar="REVISION",
    help="Branch, tag or commit. [default: main]",
)  # fmt: skip
@json_option
def pull(
    repo_id: str, out: Path | None, file_name: str | None, revision: str | None, as_json: bool
) -> None:
    """Pull a prompt file from the Hugging Face Hub, and verify it.

    Nothing is written unless the whole file is a valid prompt file. HF_TOKEN (or hf auth login) has
    the token for private repositories, HF_ENDPOINT the address of another hub.

    \b
    prompt-serve pull me/pets
    prompt-serve pull me/pets --revision v1.0 -o old.safetensors
    """
    from prompt_serve.hub.repository import pull, write
    from prompt_serve.prompts.prompt_file import version_of

    pulled = pull(repo_id, file_name=file_name, revision=revision)
    name = Path(pulled.file_name).name
    path = out or OutputFile().convert(name, None, None)
    write(pulled, path)
    prompt = pulled.prompt
    Report(
        {
            "file": str(path),
            "repo_id": pulled.repo_id,
            "file_name": pulled.file_name,
            "commit": pulled.commit,
            "version": version_of(pulled.data),
            "file_bytes": len(pulled.data),
            "name": prompt.name,
            "method": prompt.method,
            "backbone": prompt.backbone.id,
            "class_names": list(prompt.class_names),
        },
        [
            f"{path}: {counted(len(pulled.data), 'byte')}, "
            f"{counted(len(prompt.class_names), 'class')}, {prompt.method} on "
            f"{prompt.backbone.id}; commit {pulled.commit} of {repo_id}"
        ],
    ).print(as_json=as_json)


def base_model_of(backbone: str) -> str | None:
    """Return the repository that open_clip loads for MODEL/TAG; None without one, or open_clip."""
    name, slash, tag = backbone.partition("/")
    if not slash or importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    where: str = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")
    return "/".join(where.split("/")[:2]) or None
