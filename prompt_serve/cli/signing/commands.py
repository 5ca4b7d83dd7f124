"""``prompt-serve keygen``, ``sign`` and ``verify``: keys and signatures of prompt files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from prompt_serve.cli.facts import json_lines_option, json_option, print_document, print_json_lines
from prompt_serve.cli.output_file import OutputFile
from prompt_serve.cli.signing.signer import Signer
from prompt_serve.cli.user_path import UserPath
from prompt_serve.errors import PromptServeError


@click.command()
@click.argument("file", type=OutputFile())
@click.option(
    "--name",
    help="Name of the key in messages, without spaces.  [default: the file's name]",
)
@json_option
def keygen(file: Path, name: str | None, as_json: bool) -> None:
    """Write a private key to FILE, and its public key to FILE.pub.

    The private key signs prompt files: keep it where only those who may release tasks can read it.
    The public key goes into PROMPT_SERVE_TRUSTED_KEYS of the services. Existing files are not
    replaced. An unencrypted key of `ssh-keygen -t ed25519` will do as well.

    \b
    prompt-serve keygen release.key --name release-2026
    """
    from prompt_serve.signing.keys import generate_key, public_path_of

    public = generate_key(file, name or file.stem)
    if as_json:
        print_document({"key": public.id, "name": public.name, "public": public.line})
    else:
        click.echo(f"{file}: private key {public}; {public_path_of(file)}: its public key.")


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=UserPath(exists=True, dir_okay=False), metavar="FILE..."
)
@click.option("--key", "signed", type=Signer(), required=True, help="Private key.")
@click.option(
    "--name",
    help="Task name to sign for, written into the file: a service that requires signatures serves "
    "a file under this name alone.  [default: the name in the file]",
)
@click.option(
    "--out",
    "-o",
    type=OutputFile(),
    help="File to write, of a single FILE.  [default: FILE is replaced]",
)
def sign(
    files: tuple[Path, ...], signed: Callable[[bytes], bytes], name: str | None, out: Path | None
) -> None:
    """Sign prompt files, in place of any signature that they have.

    The signature is a part of the file, which thereby becomes a new version; equal files and keys
    give equal bytes.

    \b
    prompt-serve sign pets.safetensors --key release.key
    """
    from prompt_serve.prompts.prompt_file import read_prompt_file, to_bytes, version_of

    if len(files) > 1 and (out or name):
        raise click.UsageError("--out and --name are for a single FILE.")
    for file in files:
        prompt = read_prompt_file(file)
        data = to_bytes(replace(prompt, name=name)) if name else file.read_bytes()
        data = signed(data)
        path = out or file
        _write(path, data)
        click.echo(f"{path}: signed as task {name or prompt.name!r}, version {version_of(data)}.")


@click.command()
@click.argument("files", nargs=-1, required=True, type=UserPath(), metavar="FILE...")
@click.option(
    "--trusted",
    type=UserPath(exists=True),
    envvar="PROMPT_SERVE_TRUSTED_KEYS",
    show_envvar=True,
    required=True,
    metavar="PATH",
    help="File of public keys, or folder of *.pub files.",
)
@json_lines_option("file")
@click.pass_context
def verify(ctx: click.Context, files: tuple[Path, ...], trusted: Path, as_json: bool) -> None:
    """Check the signatures of prompt files; the exit code is 1 if one is not by a trusted key.

    \b
    prompt-serve verify pets.safetensors --trusted release.key.pub
    """
    from prompt_serve.prompts.prompt_file import from_bytes
    from prompt_serve.signing.trusted_keys import read_trusted_keys

    keys = read_trusted_keys(trusted)
    results = []
    for file in files:
        try:
            data = file.read_bytes()
            key = keys.verify(data)
            name = from_bytes(data).name
            results.append({"file": str(file), "task": name, "key": key.id, "name": key.name})
            line = f"{file}: signed by {key} as task {name!r}."
        except PromptServeError as error:
            results.append({"file": str(file), "error": error.message, "code": error.code})
            line = f"{file}: {error.message}"
        if not as_json:
            click.echo(line)
    if as_json:
        print_json_lines(results)
    if any("error" in result for result in results):
        ctx.exit(1)


def _write(path: Path, data: bytes) -> None:
    from prompt_serve.files import atomic_file

    with atomic_file(path, mode=0o644, sync=True) as temporary:
        temporary.write_bytes(data)
