"""Specifications of the public datasets."""

from pathlib import PurePosixPath

import pytest

from prompt_serve.prompts.prompt_file import check_templates
from prompt_serve.research.datasets.class_names import class_name_of
from prompt_serve.research.datasets.spec import (
    imagenet_domains,
    paper_datasets,
    template_of,
)

ALL = {**paper_datasets(), **imagenet_domains()}


def test_the_datasets_come_in_the_order_of_the_tables() -> None:
    assert [spec.title for spec in ALL.values()] == [
        "ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "Flowers102", "Food101",
        "FGVCAircraft", "SUN397", "DTD", "EuroSAT", "UCF101",
        "ImageNetV2", "ImageNet-Sketch", "ImageNet-A", "ImageNet-R",
    ]  # fmt: skip


def test_half_the_classes_are_base() -> None:
    """CoCoOp's halves; with an odd number, the base half is the larger."""
    halves = {name: (s.classes - s.classes // 2, s.classes // 2) for name, s in ALL.items()}
    assert halves["imagenet"] == (500, 500)
    assert halves["oxford_pets"] == (19, 18)
    assert halves["dtd"] == (24, 23)
    assert halves["sun397"] == (199, 198)
    assert halves["food101"] == halves["ucf101"] == (51, 50)


@pytest.mark.parametrize("name", ALL)
def test_a_spec_is_complete(name: str) -> None:
    spec = ALL[name]
    assert spec.fetch
    assert all(page.startswith("http") for page in spec.fetch)
    assert spec.sizes["test"] > spec.classes
    if name in imagenet_domains():
        assert spec.reader in ("numbers", "synsets")
        return
    assert spec.first_new
    assert spec.needs
    if spec.reader == "split-file":
        assert spec.needs[0].startswith("split_zhou_")
        assert len(spec.published) == 3
        assert max(spec.published) < spec.sizes["train"]


@pytest.mark.parametrize("templates", ["coop", "prograd", "kgcoop"])
def test_every_template_has_one_place_for_the_name(templates: str) -> None:
    sentences = {name: template_of(name, templates) for name in paper_datasets()}
    for sentence in sentences.values():
        check_templates((sentence,), learned=False)
    assert sentences["imagenet"] == "a photo of a {}."
    assert sentences["eurosat"] == "a centered satellite photo of {}."


def test_templates_differ_where_the_papers_code_does() -> None:
    assert [template_of("dtd", templates) for templates in ("coop", "prograd", "kgcoop")] == [
        "{} texture.",
        "a texture of {}.",
        "a photo of a {}, a type of texture.",
    ]


@pytest.mark.parametrize(
    ("name", "file", "class_name"),
    [
        ("caltech101", "Motorbikes/image_0036.jpg", "motorbike"),
        ("caltech101", "cougar_face/image_0037.jpg", "cougar_face"),
        ("oxford_pets", "Egyptian_Mau_132.jpg", "egyptian_mau"),
        ("sun397", "c/car_interior/backseat/sun_aagvtgpqzcahfdgf.jpg", "backseat car_interior"),
        ("sun397", "y/yard/sun_bplblxnefnxaeemj.jpg", "yard"),
        ("eurosat", "PermanentCrop/PermanentCrop_841.jpg", "Permanent Crop Land"),
        ("eurosat", "River/River_1465.jpg", "River"),
        ("ucf101", "Handstand_Pushups/v_HandStandPushups_g19_c03.jpg", "Handstand_Pushups"),
        ("stanford_cars", "cars_train/00467.jpg", None),
        ("oxford_flowers", "image_00144.jpg", None),
    ],
)
def test_classes_are_called_as_in_the_published_splits(
    name: str, file: str, class_name: str | None
) -> None:
    """Entries of the published split files."""
    assert class_name_of(PurePosixPath(file), paper_datasets()[name]) == class_name


@pytest.mark.parametrize("name", [name for name, spec in ALL.items() if spec.names_from])
def test_the_files_that_tell_a_split_have_a_class(name: str) -> None:
    spec = ALL[name]
    for file in spec.published.values():
        assert class_name_of(PurePosixPath(file), spec)
