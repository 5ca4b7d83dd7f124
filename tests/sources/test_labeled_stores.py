"""Labeled data in object stores, read by ``train``: S3, Google Cloud Storage, Hugging Face."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import Ignored
from prompt_serve.sources.plan import shards_of
from prompt_serve.training.data.loading import check_images, read_dataset
from prompt_serve.training.multi_label.dataset import read_multi_label
from tests.cli.conftest import Run, caches, run
from tests.drawings import draw_dataset
from tests.sources import labeled_forms as forms
from tests.sources.hub_files import running_hub
from tests.sources.labeled_forms import FORMS, Images, images_of
from tests.sources.stores import (
    Publish,
    bucket_store,
    configured_hub,
    hub_store,
    running_gcs,
    running_s3,
)
from tests.sources.test_plan import content as content_of_shards
from tests.training.data.test_labeled_sources import TRAIN, content, learned

__all__ = ["caches", "run"]  # fixtures

STORES = {
    "s3": lambda: bucket_store(running_s3, "s3"),
    "gs": lambda: bucket_store(running_gcs, "gs"),
    "hf": hub_store,
}
REMOTE_FORMS = {"folder": forms.folder, **FORMS}


@pytest.fixture(scope="module", params=list(STORES))
def publish(request: pytest.FixtureRequest) -> Iterator[Publish]:
    with STORES[request.param]() as publish:
        yield publish


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("pets") / "pets", train=3, test=1)


@pytest.fixture(scope="module")
def prompt(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt learned from the folder."""
    return learned(pets, tmp_path_factory.mktemp("prompt"))


@pytest.fixture(scope="module")
def images(pets: Path) -> Images:
    return images_of(pets)


@pytest.mark.parametrize("form", ["folder", *forms.short_first(FORMS)])
def test_every_form_in_a_store_is_the_folder_it_was_made_of(
    publish: Publish, pets: Path, images: Images, tmp_path: Path, form: str
) -> None:
    root = tmp_path / "data"
    url = publish(REMOTE_FORMS[form](images, root), root)

    first = read_dataset(url)
    again = read_dataset(url)

    assert content(first) == content(again) == content(read_dataset(pets))
    assert first == again
    assert all(item.name.startswith(url.partition("://")[0]) for item in first.train.items)


@pytest.mark.parametrize(
    "form", ["folder", pytest.param("Parquet of datasets", marks=pytest.mark.long)]
)
def test_the_prompt_learned_in_a_store_is_that_of_the_folder(
    publish: Publish, run: Run, prompt: Path, images: Images, tmp_path: Path, form: str
) -> None:
    root = tmp_path / "data"
    url = publish(REMOTE_FORMS[form](images, root), root)

    done = run("train", url, *TRAIN, "--out", tmp_path / "store.safetensors")
    measured = run("evaluate", prompt, url, "--json")

    assert done.exit_code == measured.exit_code == 0, done.output
    assert (tmp_path / "store.safetensors").read_bytes() == prompt.read_bytes()
    assert json.loads(measured.stdout)["images"] == 4


def test_unreadable_images_of_a_store_are_named_by_their_urls(
    publish: Publish, images: Images, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    forms.folder(images, root)
    (root / "train" / "red" / "bad.png").write_bytes(b"no image")
    (root / "train" / "red" / "notes.txt").write_bytes(b"no image")
    url = publish(root, root)

    with pytest.raises(DatasetInvalid, match=f"{url}/train/red/bad.png: "):
        read_dataset(url, repairs=[check_images()])
    notes = read_dataset(url, repairs=[check_images(on_bad_image="skip")]).notes

    assert notes[0] == "1 file ignored: 1 .txt."
    assert f"{url}/train/red/bad.png" in notes[1]


@pytest.mark.parametrize("missing", ["/nothing", "/train/nothing.tar", "/*.parquet", "/{0..3}.tar"])
def test_what_is_not_in_a_store_is_one_error(
    publish: Publish, images: Images, tmp_path: Path, missing: str
) -> None:
    root = tmp_path / "data"
    url = publish(forms.folder(images, root), root)

    with pytest.raises(DatasetInvalid, match=r"(?i)no(t| such)? .*folder"):
        read_dataset(url + missing)


def test_a_table_on_this_machine_may_name_urls(
    publish: Publish, pets: Path, images: Images, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    url = publish(forms.folder(images, root), root)
    lines = [f"{url}/{one.part}/{one.label}/{one.name},{one.label},{one.part}" for one in images]
    (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    (tmp_path / "gone.csv").write_text(
        "path,label,split\n" + "\n".join(lines) + f"\n{url}/gone.png,red,train\n"
    )

    assert content(read_dataset(tmp_path / "m.csv")) == content(read_dataset(pets))
    with pytest.raises(DatasetInvalid, match=f"{url}/gone.png: no such file"):
        read_dataset(tmp_path / "gone.csv")


@pytest.mark.parametrize("pattern", ["/train", "/train/", "/*/red/*.png", "/train/**/0[12].png"])
def test_a_store_is_read_without_its_labels(
    publish: Publish, images: Images, tmp_path: Path, pattern: str
) -> None:
    """What ``score`` reads."""
    root = tmp_path / "data"
    url = publish(forms.folder(images, root), root)
    expected = {
        f"{url}/{one.part}/{one.label}/{one.name}": one.data
        for one in images
        if (one.label == "red" if "red" in pattern else one.part == "train")
        and ("0[12]" not in pattern or one.name != "00.png")
    }

    found = content_of_shards(shards_of([url + pattern], Ignored(), rows_per_shard=4))

    assert dict(found) == expected
    assert len(found) == len(expected)


def test_labels_of_nested_folders_in_a_store_are_read(
    publish: Publish, images: Images, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    url = publish(forms.folder(images, root), root)

    dataset = read_multi_label(url)

    assert dataset.class_names == ("blue", "green", "red", "yellow")
    assert {name: len(part) for name, part in dataset.parts.items()} == {"train": 12, "test": 4}
    names = [item.name for item in dataset.parts["test"].images.items]
    assert names == [f"{url}/test/{one.label}/{one.name}" for one in images if one.part == "test"]


@pytest.mark.parametrize(
    ("revision", "inside"),
    [
        ("@main", ""),
        ("@v1.0", "/data"),
        ("@refs%2Fconvert%2Fparquet", ""),
        ("@refs%2Fconvert%2Fparquet", "/data/*.parquet"),
        ("@c0ffee", "/data/"),
        ("", "/data/*.parquet"),
    ],
)
def test_a_revision_of_the_hub_is_read(
    pets: Path, images: Images, tmp_path: Path, revision: str, inside: str
) -> None:
    forms.parquet_of_datasets(images, tmp_path / "data")
    with hub_store() as publish:
        name = publish(tmp_path / "data", tmp_path / "data")

        found = content(read_dataset(f"{name}{revision}{inside}"))

    assert found == content(read_dataset(pets))


@pytest.mark.parametrize(
    "form", ["folder", "CSV", "imagefolder, metadata.jsonl", "WebDataset, .cls number",
             "tar of class folders"],
)  # fmt: skip
def test_images_are_downloaded_once(images: Images, tmp_path: Path, form: str) -> None:
    source = REMOTE_FORMS[form](images, tmp_path / "data")
    with configured_hub() as hub:
        hub.add("someone/pets", tmp_path / "data")
        inside = source.relative_to(tmp_path / "data").as_posix()
        url = f"hf://datasets/someone/pets/{inside}".removesuffix("/.")
        found = []
        downloads = []
        for _ in range(2):
            found.append(content(read_dataset(url)))
            sent = [path for path in hub.requests if path.startswith("/cdn/")]
            downloads.append([path for path in sent if path.endswith((".png", ".tar", ".gz"))])
            hub.requests.clear()

    assert found[0] == found[1]
    assert len(downloads[0]) >= (1 if "tar" in form else 2)
    assert downloads[1] == []
    if not form.startswith("tar") and not form.startswith("Web"):
        assert len(downloads[0]) == len(set(downloads[0])) == len(images)


def test_a_changed_object_is_read_again(images: Images, tmp_path: Path) -> None:
    with running_s3() as files:
        files.mkdir("pets")
        for number, one in enumerate(images):
            files.pipe_file(f"pets/{one.part}/{one.label}/{one.name}", images[number].data)
        before = content(read_dataset("s3://pets"))
        first = images[0]
        files.pipe_file(f"pets/{first.part}/{first.label}/{first.name}", images[1].data)

        after = content(read_dataset("s3://pets"))

    changed = [a != b for a, b in zip(after["train"], before["train"], strict=True)]
    assert changed == [True] + 11 * [False]


@pytest.mark.long
def test_the_command_reads_the_hub_that_the_environment_names(
    pets: Path, images: Images, tmp_path: Path
) -> None:
    """As the user has it: HF_ENDPOINT, and a process of its own."""
    forms.parquet_of_datasets(images, tmp_path / "data")
    with running_hub() as hub:
        hub.add("someone/pets", tmp_path / "data")
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "PROMPT_SERVE_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "hf"),
        }
        made: list[bytes] = []
        for of in (str(pets), "hf://datasets/someone/pets"):
            out = tmp_path / f"{len(made)}.safetensors"
            command = [sys.executable, "-m", "prompt_serve", "train", of, *TRAIN, "-o", str(out)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
            made.append(out.read_bytes())

    assert made[0] == made[1]
