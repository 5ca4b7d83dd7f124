"""The public datasets in small: empty files in the published layouts, with specs that say so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from prompt_serve.research.datasets.spec import DatasetSpec, imagenet_domains, paper_datasets

COUNTS = {"train": 3, "val": 1, "test": 2}  # images a class
SYNSETS = ("n01440764", "n01443537", "n03773504", "n04008634", "n04355933")
# Two classes have one name, as in CLIP's list.
NAMES = ("tench", "goldfish", "missile", "missile", "sunglasses")

# For each dataset with a split file, four classes in the order of their labels: where an image
# of the class lies below the folder of images, and what the published split calls the class.
CLASSES = {
    "caltech101": {
        "Faces/image_{:04}.jpg": "face",
        "Leopards/image_{:04}.jpg": "leopard",
        "airplanes/image_{:04}.jpg": "airplane",
        "car_side/image_{:04}.jpg": "car_side",
    },
    "oxford_pets": {
        "Abyssinian_{}.jpg": "abyssinian",
        "american_pit_bull_terrier_{}.jpg": "american_pit_bull_terrier",
        "British_Shorthair_{}.jpg": "british_shorthair",
        "pug_{}.jpg": "pug",
    },
    "stanford_cars": {
        "cars_train/{:05}.jpg": "2000 AM General Hummer SUV",
        "cars_train/{:06}.jpg": "2012 Acura RL Sedan",
        "cars_test/{:05}.jpg": "2012 FIAT 500 Abarth",
        "cars_test/{:06}.jpg": "1993 Geo Metro Convertible",
    },
    "oxford_flowers": {
        "image_{:05}.jpg": "pink primrose",
        "image_{:06}.jpg": "colt's foot",
        "image_{:07}.jpg": "wild pansy",
        "image_{:08}.jpg": "black-eyed susan",
    },
    "food101": {
        "apple_pie/{}.jpg": "apple_pie",
        "beignets/{}.jpg": "beignets",
        "guacamole/{}.jpg": "guacamole",
        "pho/{}.jpg": "pho",
    },
    "sun397": {
        "a/abbey/sun_{}.jpg": "abbey",
        "a/apartment_building/outdoor/sun_{}.jpg": "outdoor apartment_building",
        "i/ice_skating_rink/outdoor/sun_{}.jpg": "outdoor ice_skating_rink",
        "y/yard/sun_{}.jpg": "yard",
    },
    "dtd": {
        "banded/banded_{:04}.jpg": "banded",
        "lined/lined_{:04}.jpg": "lined",
        "matted/matted_{:04}.jpg": "matted",
        "polka-dotted/polka-dotted_{:04}.jpg": "polka-dotted",
    },
    "eurosat": {
        "AnnualCrop/AnnualCrop_{}.jpg": "Annual Crop Land",
        "Forest/Forest_{}.jpg": "Forest",
        "Highway/Highway_{}.jpg": "Highway or Road",
        "SeaLake/SeaLake_{}.jpg": "Sea or Lake",
    },
    "ucf101": {
        "Apply_Eye_Makeup/v_ApplyEyeMakeup_g{:02}_c01.jpg": "Apply_Eye_Makeup",
        "Handstand_Pushups/v_HandStandPushups_g{:02}_c01.jpg": "Handstand_Pushups",
        "Lunges/v_Lunges_g{:02}_c01.jpg": "Lunges",
        "Yo_Yo/v_YoYo_g{:02}_c01.jpg": "Yo_Yo",
    },
}
Document = dict[str, list[tuple[str, int, str]]]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A small dataset on disk."""

    root: Path
    folder: Path
    spec: DatasetSpec  # the published one with the counts of the tree

    @property
    def specs(self) -> dict[str, DatasetSpec]:
        return {self.spec.name: self.spec}

    def document(self) -> Document:
        document: Document = json.loads((self.folder / self.spec.needs[0]).read_text())
        return document

    def write(self, document: Document) -> None:
        (self.folder / self.spec.needs[0]).write_text(json.dumps(document))


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def split_tree(root: Path, name: str, folder: str = "") -> Tree:
    """A dataset with a split file; its training list begins with the class of label 2."""
    published = paper_datasets()[name]
    place = root / (folder or published.folders[0])
    classes = list(CLASSES[name].items())
    document: Document = {part: [] for part in COUNTS}
    number = 0
    for label in (2, 0, 3, 1):
        pattern, class_name = classes[label]
        for part, count in COUNTS.items():
            for _ in range(count):
                number += 1
                document[part].append((pattern.format(number), label, class_name))
    for entries in document.values():
        for file, _, _ in entries:
            touch(place / published.images[0] / file)
    spec = replace(
        published,
        classes=4,
        sizes={part: 4 * count for part, count in COUNTS.items()},
        first_new=classes[2][1],
        published={at: document["train"][at][0] for at in (0, 5, 11)},
    )
    tree = Tree(root=root, folder=place, spec=spec)
    tree.write(document)
    return tree


def aircraft_tree(root: Path) -> Tree:
    """FGVC-Aircraft with four variants."""
    published = paper_datasets()["fgvc_aircraft"]
    place = root / "fgvc_aircraft"
    variants = ("707-320", "727-200", "Cessna 560", "F-16A/B")
    place.mkdir(parents=True)
    (place / "variants.txt").write_text("\n".join(variants) + "\n")
    number = 0
    for part, count in COUNTS.items():
        lines = []
        for variant in reversed(variants):
            for _ in range(count):
                number += 1
                lines.append(f"{number:07} {variant}")
                touch(place / "images" / f"{number:07}.jpg")
        (place / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    sizes = {part: 4 * count for part, count in COUNTS.items()}
    spec = replace(published, classes=4, sizes=sizes)
    return Tree(root=root, folder=place, spec=spec)


def imagenet_tree(root: Path, folder: str = "imagenet") -> Tree:
    """ImageNet with five classes, two of them of one name; classnames.txt is not in their order."""
    place = root / folder
    for part, count in (("train", 3), ("val", 2)):
        for synset in SYNSETS:
            for n in range(count):
                touch(place / "images" / part / synset / f"{synset}_{count - n}.JPEG")
    write_class_names(place)
    spec = replace(
        paper_datasets()["imagenet"], classes=5, sizes={"train": 15, "test": 10}, first_new=""
    )
    return Tree(root=root, folder=place, spec=spec)


def write_class_names(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{synset} {name}" for synset, name in zip(SYNSETS, NAMES, strict=True)]
    (folder / "classnames.txt").write_text("\n".join(reversed(lines)) + "\n")


def domain_trees(root: Path) -> Mapping[str, DatasetSpec]:
    """The four test sets: V2 and Sketch of all five classes, -A and -R of some."""
    published = imagenet_domains()
    folders = {
        "imagenetv2": [str(label) for label in range(5)],
        "imagenet-sketch": list(SYNSETS),
        "imagenet-a": [SYNSETS[4], SYNSETS[0]],
        "imagenet-r": [SYNSETS[3], SYNSETS[1], SYNSETS[2]],
    }
    specs = {}
    for name, classes in folders.items():
        spec = published[name]
        for class_folder in classes:
            for n in range(2):
                touch(root / spec.folders[0] / spec.images[0] / class_folder / f"{n}.jpg")
        touch(root / spec.folders[0] / spec.images[0] / "README.txt")
        specs[name] = replace(spec, classes=len(classes), sizes={"test": 2 * len(classes)})
    return specs
