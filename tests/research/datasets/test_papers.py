"""The papers' datasets: read in their layouts, refused where they are not the published ones."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid, DatasetInvalid, DatasetMissing
from prompt_serve.research.datasets.papers import papers_suite
from prompt_serve.research.datasets.spec import imagenet_domains, paper_datasets
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.dataset import ImageSet
from tests.research.datasets.trees import (
    CLASSES,
    NAMES,
    SYNSETS,
    Document,
    Tree,
    aircraft_tree,
    domain_trees,
    imagenet_tree,
    split_tree,
    touch,
    write_class_names,
)


def suite_of(tree: Tree) -> Suite:
    return papers_suite(tree.root, datasets=tree.specs, domains={})


def loaded(tree: Tree) -> BenchDataset:
    return suite_of(tree).load(tree.spec.name)


def listed(images: ImageSet | None, folder: Path) -> list[tuple[str, str]]:
    assert images is not None
    return [
        (item.path.relative_to(folder).as_posix(), images.class_names[item.label])
        for item in images.items
    ]


def refused(tree: Tree) -> str:
    with pytest.raises(DatasetInvalid, match="Download the images") as caught:
        loaded(tree)
    return str(caught.value)


@pytest.mark.parametrize("name", CLASSES)
def test_a_split_file_is_read_in_its_published_layout(tmp_path: Path, name: str) -> None:
    tree = split_tree(tmp_path, name)
    dataset = loaded(tree)
    assert dataset.split.class_names == tuple(CLASSES[name].values())
    images = tree.folder / tree.spec.images[0]
    document = tree.document()
    for part in ("train", "val", "test"):
        expected = [(file, class_name) for file, _, class_name in document[part]]
        assert listed(dataset.split.parts[part], images) == expected
    # The order of first appearance, by which shots are drawn, is that of the file.
    assert list(dataset.split.train.by_label()) == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("caltech101", "Caltech101"),
        ("dtd", "DTD"),
        ("eurosat", "EuroSAT"),
        ("food101", "Food101"),
        ("oxford_flowers", "Flower102"),
        ("oxford_flowers", "flowers-102"),
        ("oxford_pets", "OxfordPets"),
        ("oxford_pets", "oxford-iiit-pet"),
        ("stanford_cars", "StanfordCars"),
        ("sun397", "SUN397"),
        ("ucf101", "UCF101"),
    ],
)
def test_folders_may_have_the_names_that_forks_give_them(
    tmp_path: Path, name: str, folder: str
) -> None:
    tree = split_tree(tmp_path, name, folder)
    assert len(loaded(tree).split.train) == 12


def test_of_two_folders_the_complete_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "oxford_flowers" / "jpg").mkdir(parents=True)  # of torchvision, without a split
    tree = split_tree(tmp_path, "oxford_flowers", "Flower102")
    item = loaded(tree).split.train.items[0]
    assert item.path.is_relative_to(tmp_path / "Flower102")


def test_what_is_missing_is_listed_with_what_to_fetch(tmp_path: Path) -> None:
    suite = papers_suite(tmp_path)
    assert not suite.datasets
    assert list(suite.missing) == list(paper_datasets())
    assert list(suite.missing_domains) == list(imagenet_domains())
    flowers = suite.missing["oxford_flowers"]
    for text in (
        "no folder oxford_flowers/ (or Flower102/, flowers-102/, oxford_flowers102/) in "
        f"{tmp_path}",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        str(tmp_path / "oxford_flowers" / "jpg"),
        "split_zhou_OxfordFlowers.json (https://github.com/KaiyangZhou/CoOp/blob/main/"
        "DATASETS.md#flowers102)",
    ):
        assert text in flowers
    with pytest.raises(DatasetMissing, match="'dtd' is missing: there is no folder dtd/"):
        suite.load("dtd")


def test_a_missing_split_file_is_not_made_anew(tmp_path: Path) -> None:
    tree = split_tree(tmp_path, "dtd")
    (tree.folder / "split_zhou_DescribableTextures.json").unlink()
    with pytest.raises(
        DatasetMissing, match=r"has no split_zhou_DescribableTextures.json\. Download"
    ):
        loaded(tree)
    assert not list(tree.folder.glob("*.json"))


def test_a_folder_without_images_is_missing(tmp_path: Path) -> None:
    for name in ("eurosat", "stanford_cars"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / paper_datasets()[name].needs[0]).write_text("{}")
    missing = papers_suite(tmp_path).missing
    assert (
        "eurosat has no folder of images (2750 or EuroSAT_RGB or .). Download" in missing["eurosat"]
    )
    assert "no folder of images (.) with cars_train/ and cars_test/" in missing["stanford_cars"]


def drop_one(document: Document) -> None:
    document["test"].pop()


def draw_anew(document: Document) -> None:
    random.Random(1).shuffle(document["train"])


def swap_parts(document: Document) -> None:
    document["train"][0], document["val"][0] = document["val"][0], document["train"][0]


def rename(document: Document) -> None:
    for part, entries in document.items():
        document[part] = [(f, y, name.replace("Forest", "forest")) for f, y, name in entries]


def relabel(document: Document) -> None:
    for part, entries in document.items():
        document[part] = [(f, 3 - y, name) for f, y, name in entries]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (drop_one, "test has 7 images; published are 8"),
        (draw_anew, "the split was drawn anew"),
        (swap_parts, "training image 0 is Highway/Highway_4.jpg; published is Highway/Highway_1"),
        (rename, "is called 'forest'; published is 'Forest'"),
        (relabel, "class 2 is 'Forest'; published is 'Highway or Road', the first of the new"),
    ],
)
def test_a_changed_split_is_refused(tmp_path: Path, change: object, fault: str) -> None:
    tree = split_tree(tmp_path, "eurosat")
    document = tree.document()
    assert callable(change)
    change(document)
    tree.write(document)
    assert fault in refused(tree)


def test_a_web_page_in_place_of_a_split_is_refused(tmp_path: Path) -> None:
    tree = split_tree(tmp_path, "dtd")
    (tree.folder / tree.spec.needs[0]).write_text("<html>Sign in to download</html>")
    assert "split_zhou_DescribableTextures.json is not JSON" in refused(tree)


def test_a_split_of_images_elsewhere_is_refused(tmp_path: Path) -> None:
    tree = split_tree(tmp_path, "ucf101")
    document = tree.document()
    elsewhere = tmp_path / "Lunges" / "1.jpg"
    touch(elsewhere)
    document["train"][0] = (str(elsewhere), 2, "Lunges")
    tree.write(document)
    assert f"training image 0 is {elsewhere}; published is Lunges/" in refused(tree)


def test_classes_and_images_that_are_missing_are_refused(tmp_path: Path) -> None:
    tree = split_tree(tmp_path, "food101")
    (tree.folder / "images" / "pho" / "13.jpg").unlink()
    five = replace(tree, spec=replace(tree.spec, classes=5))
    text = refused(five)
    assert f"{tree.folder / 'images' / 'pho' / '13.jpg'}: no such file" in text
    assert "train has 11 images; published are 12" in text
    assert "it has 4 classes; published are 5" in text


def test_aircraft_is_read_from_its_own_lists(tmp_path: Path) -> None:
    tree = aircraft_tree(tmp_path)
    split = loaded(tree).split
    # In the order of variants.txt, whatever the order of the images.
    assert split.class_names == ("707-320", "727-200", "Cessna 560", "F-16A/B")
    assert listed(split.train, tree.folder)[:4] == [
        ("images/0000001.jpg", "F-16A/B"),
        ("images/0000002.jpg", "F-16A/B"),
        ("images/0000003.jpg", "F-16A/B"),
        ("images/0000004.jpg", "Cessna 560"),
    ]
    with (tree.folder / "images_variant_val.txt").open("a") as file:
        file.write("0000099 Concorde\n")
    assert "images_variant_val.txt, line 5: variants.txt has no 'Concorde'" in refused(tree)


def test_imagenet_is_sorted_and_its_validation_images_are_the_test_images(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path)
    split = loaded(tree).split
    assert split.val is None  # so that nothing can be chosen on test images
    assert split.class_names == ("tench", "goldfish", "missile", "missile_", "sunglasses")
    train = [item.path.relative_to(tree.folder).as_posix() for item in split.train.items]
    assert train == sorted(train)
    assert train[0] == "images/train/n01440764/n01440764_1.JPEG"
    assert split.test is not None
    assert len(split.test) == 10
    assert all(item.path.is_relative_to(tree.folder / "images/val") for item in split.test.items)


def test_classes_of_one_name_are_one_sentence_to_the_text_tower(
    tmp_path: Path, tiny_backbone: Backbone
) -> None:
    names = loaded(imagenet_tree(tmp_path)).split.class_names
    assert len(set(names)) == len(names)
    encode = tiny_backbone.tokenizer.encode
    read = [encode(f"a photo of a {name.replace('_', ' ')}.") for name in names]
    assert read == [encode(f"a photo of a {name}.") for name in NAMES]


def test_imagenet_needs_a_name_for_each_class(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path)
    touch(tree.folder / "images" / "train" / "n09999999" / "1.JPEG")
    (tree.folder / "images" / "val" / SYNSETS[0]).rename(tmp_path / "elsewhere")
    text = refused(tree)
    assert "n09999999: classnames.txt has no such class" in text
    assert f"val has no folder {SYNSETS[0]}" in text
    (tree.folder / "images" / "val").rename(tmp_path / "sorted")
    touch(tree.folder / "images" / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert "sort the images in val/ into one folder per synset" in refused(tree)
    (tree.folder / "classnames.txt").write_text("n01440764\n")
    with pytest.raises(DatasetInvalid, match="line 1 is 'n01440764'; expected a synset and a name"):
        loaded(tree)


def test_a_suite_lists_images_only_when_a_dataset_is_loaded(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path)
    suite = suite_of(replace(tree, spec=replace(tree.spec, sizes={"train": 16, "test": 10})))
    touch(tree.folder / "images" / "train" / SYNSETS[0] / "late.JPEG")
    assert len(suite.load("imagenet").split.train) == 16


def test_domains_have_their_own_classes_with_imagenets_names(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path)
    domains = domain_trees(tmp_path)
    dataset = papers_suite(tmp_path, datasets=tree.specs, domains=domains).load("imagenet")
    assert list(dataset.domains) == ["imagenetv2", "imagenet-sketch", "imagenet-a", "imagenet-r"]
    names = dataset.split.class_names
    assert dataset.domains["imagenetv2"].class_names == names
    assert dataset.domains["imagenet-sketch"].class_names == names
    assert dataset.domains["imagenet-a"].class_names == ("tench", "sunglasses")
    assert dataset.domains["imagenet-r"].class_names == ("goldfish", "missile", "missile_")
    for domain, spec in domains.items():
        for file, class_name in listed(
            dataset.domains[domain], tmp_path / spec.folders[0] / spec.images[0]
        ):
            folder = file.partition("/")[0]
            label = int(folder) if folder.isdecimal() else SYNSETS.index(folder)
            assert class_name == names[label]


def test_a_faulty_domain_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path)
    domains = domain_trees(tmp_path)
    touch(tmp_path / "imagenet-rendition" / "imagenet-r" / "n09999999" / "1.jpg")
    touch(tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / "5" / "1.jpg")
    touch(tmp_path / "imagenet-sketch" / "images" / SYNSETS[0] / "more.jpg")
    dataset = papers_suite(tmp_path, datasets=tree.specs, domains=domains).load("imagenet")
    for name, fault in (
        ("imagenet-r", "n09999999: classnames.txt has no such class"),
        ("imagenetv2", "5: classnames.txt has no such class"),
        ("imagenet-sketch", "test has 11 images; published are 10"),
    ):
        with pytest.raises(DatasetInvalid, match=fault):
            dataset.domains[name]
    assert len(dataset.domains["imagenet-a"]) == 4


def test_a_missing_domain_is_listed_and_the_others_are_there(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path)
    domains = domain_trees(tmp_path)
    (tmp_path / "imagenetv2").rename(tmp_path / "v2")
    suite = papers_suite(tmp_path, datasets=tree.specs, domains=domains)
    assert list(suite.missing_domains) == ["imagenetv2"]
    assert "https://github.com/modestyachts/ImageNetV2" in suite.missing_domains["imagenetv2"]
    assert len(suite.load("imagenet").domains) == 3


def test_domains_take_their_own_list_of_names_if_need_be(tmp_path: Path) -> None:
    tree = imagenet_tree(tmp_path, folder="ILSVRC2012")
    domains = domain_trees(tmp_path)
    write_class_names(tmp_path / "imagenetv2")
    (tmp_path / "imagenetv2" / "classnames.txt").write_text("n01440764 another fish\n")
    dataset = papers_suite(tmp_path, datasets=tree.specs, domains=domains).load("imagenet")
    # ImageNet's own list is the one that counts.
    assert dataset.domains["imagenetv2"].class_names == dataset.split.class_names


def test_templates_come_in_sets(tmp_path: Path) -> None:
    tree = split_tree(tmp_path, "oxford_pets")
    sentences = {
        templates: papers_suite(tmp_path, templates=templates, datasets=tree.specs, domains={})
        .load("oxford_pets")
        .template
        for templates in ("coop", "prograd", "kgcoop")
    }
    assert sentences == {
        "coop": "a photo of a {}, a type of pet.",
        "prograd": "a type of pet, a photo of a {}.",
        "kgcoop": "a photo of a {}, a type of pet.",
    }
    with pytest.raises(
        ConfigInvalid, match="Unknown set of templates 'clip'; expected one of coop"
    ):
        papers_suite(tmp_path, templates="clip", datasets=tree.specs, domains={})
