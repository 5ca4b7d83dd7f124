"""Prompt files whose names differ from those that they hold."""

import shutil
from pathlib import Path

import pytest

from prompt_serve.client.uploads import other_names_inside
from prompt_serve.prompts.prompt_file import to_bytes
from tests.client.test_clients import prompt


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("held", "differing"),
    [
        ({"birds": "birds", "cats": "cats"}, {}),
        ({"birds": "", "cats": "cats"}, {}),
        ({"birds": "owls", "cats": "cats"}, {"birds.safetensors": "owls"}),
        ({"v1.2": "v1", "v1.3": "v1.3"}, {"v1.2.safetensors": "v1"}),
        ({"a": "x", "b": "x"}, {"a.safetensors": "x", "b.safetensors": "x"}),
    ],
)
def test_names_that_differ_from_those_of_the_files_are_found(
    tmp_path: Path, held: dict[str, str], differing: dict[str, str], zipped: bool
) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, inside in held.items():
        (folder / f"{name}.safetensors").write_bytes(to_bytes(prompt(inside)))
    (folder / "bad.safetensors").write_bytes(b"no prompt file")
    source = Path(shutil.make_archive(str(folder), "zip", folder)) if zipped else folder

    assert other_names_inside(source) == differing
