"""Words that the text tower learns, with targets (N, 256) from MiniLM.

A text tower of 3.5 M parameters cannot read the web, but it can learn what a sentence encoder
thinks of some 65,000 names: icons, ImageNet classes, WordNet nouns, emoji keywords, and short
compositions ("wooden chair", "flower tulip") so that the words before a name keep a meaning. That
last part is what prompt learning turns.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from pretraining.icons import read_set, trained_names, trained_sets
from pretraining.workdir import WorkDir, written_whole

EMBED_DIM = 256
COMPOSITIONS = 15_000
MODIFIERS = """red green blue yellow black white golden small big old new young wild wooden metal
plastic fresh cooked sweet round long striped cute happy sad broken open closed modern antique
colorful flying running sleeping tropical sea winter summer garden kitchen toy animal bird fish
insect flower fruit vegetable food drink tool vehicle machine building clothing instrument sport
weather furniture landscape body symbol game""".split()

# Sampling weight of a name by its source.
WEIGHTS = {
    "imagenet": 8.0,
    "trained": 4.0,
    "keyword": 2.0,
    "noun": 1.0,
    "icon": 0.5,
    "composition": 0.7,
}


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names with their targets; `trained` marks those with training images."""

    words: tuple[str, ...]
    weights: np.ndarray  # (N,) sampling weights
    targets: np.ndarray  # (N, 256) float32, unit length: centered, PCA of MiniLM

    def rows(self, words: list[str]) -> np.ndarray:
        """Return the rows of some words."""
        row = {word: i for i, word in enumerate(self.words)}
        return np.array([row[word] for word in words])


def imagenet_names(work: WorkDir) -> list[str]:
    """Return the 1,000 class names in class order."""
    return [str(name) for name in np.load(work.photo_features)["names"]]


def wordnet_nouns() -> list[str]:
    """Return all lemmas of the ImageNet-21k synsets, as shipped with timm."""
    table = files("timm.data").joinpath("_info/imagenet_synset_to_lemma.txt").read_text()
    lemmas = (
        lemma.strip().lower()
        for line in table.splitlines()
        for lemma in line.split("\t")[1].split(",")
    )
    return [lemma for lemma in dict.fromkeys(lemmas) if len(lemma.split()) <= 4]


def emoji_keywords(emojibase: Path) -> list[str]:
    """Return labels and search tags of all emoji, and the names of their groups."""
    emoji = json.loads((emojibase / "en" / "data.json").read_text())
    groups = json.loads((emojibase / "meta" / "groups.json").read_text())
    words = [word for entry in emoji for word in (entry["label"], *entry.get("tags", ()))]
    words += [
        name.replace("-", " ") for kind in ("groups", "subgroups") for name in groups[kind].values()
    ]
    return list(dict.fromkeys(word.lower() for word in words))


def icon_names(iconify: Path, min_families: int = 2) -> list[str]:
    """Return names of trained sets that more than one family uses."""
    families: dict[str, set[str]] = defaultdict(set)
    for icon_set in trained_sets(iconify):
        for icon in read_set(iconify, icon_set.prefix):
            families[icon.name].add(icon_set.family)
    return [name for name, found in families.items() if len(found) >= min_families]


def collect_words(work: WorkDir) -> dict[str, float]:
    """Map words to weights."""
    sources = {
        "composition": _compositions(imagenet_names(work) + list(trained_names(work.iconify))),
        "icon": icon_names(work.iconify),
        "noun": wordnet_nouns(),
        "keyword": emoji_keywords(work.emojibase),
        "trained": sorted(trained_names(work.iconify)),
        "imagenet": imagenet_names(work),
    }
    weights: dict[str, float] = {}
    for source, words in sources.items():  # the last source overrides: it weighs more
        weights |= dict.fromkeys(words, WEIGHTS[source])
    return weights


def _compositions(nouns: list[str]) -> list[str]:
    rng = np.random.default_rng(0)
    short = [noun for noun in nouns if len(noun.split()) <= 2]
    return [f"{rng.choice(MODIFIERS)} {rng.choice(short)}" for _ in range(COMPOSITIONS)]


def embed_names(work: WorkDir) -> None:
    """Store MiniLM's embeddings of all words, centered and reduced to 256 dimensions."""
    if work.names.exists():
        return
    weights = collect_words(work)
    words = list(weights)
    embeddings = sentence_embeddings(words, work.root)
    drawn = np.array(list(weights.values()), dtype=np.float32)
    targets, kept = centered_pca(embeddings, drawn / drawn.sum(), EMBED_DIM)
    print(f"names: {len(words)}; {EMBED_DIM} dimensions keep {kept:.1%} of the variance")
    with written_whole(work.names) as draft:
        np.savez(draft, words=np.array(words), weights=drawn, targets=targets)


def load_names(work: WorkDir) -> Names:
    """Load the output of `embed_names`."""
    stored = np.load(work.names)
    return Names(
        words=tuple(stored["words"].tolist()), weights=stored["weights"], targets=stored["targets"]
    )


def centered_pca(rows: np.ndarray, weights: np.ndarray, dim: int) -> tuple[np.ndarray, float]:
    """(N, dim) unit rows in the weighted principal axes, and the share of variance they keep.

    Centered, because sentence embeddings of short names all share a large common part.
    """
    centered = rows - weights @ rows
    values, axes = np.linalg.eigh((centered * weights[:, None]).T @ centered)
    reduced = centered @ axes[:, ::-1][:, :dim]
    kept = float(values[::-1][:dim].sum() / values.sum())
    return reduced / np.linalg.norm(reduced, axis=1, keepdims=True), kept


@torch.no_grad()
def sentence_embeddings(words: list[str], folder: Path, batch: int = 256) -> np.ndarray:
    """Return MiniLM embeddings (N, 384) of unit length, mean over tokens, as its authors use it."""
    from all_minilm_l6_v2 import extract_model  # unpacks 80 MB, so imported on use
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "minilm").exists():
        extract_model(str(folder / "minilm"))
    source = next(path.parent for path in sorted((folder / "minilm").rglob("tokenizer.json")))
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source).eval()
    by_length = sorted(range(len(words)), key=lambda i: len(words[i]))  # little padding
    found = np.zeros((len(words), 384), np.float32)
    for start, end in pairwise([*range(0, len(words), batch), len(words)]):
        rows = by_length[start:end]
        inputs = tokenizer(
            [words[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=32,
            return_tensors="pt",
        )
        mask = inputs["attention_mask"][..., None]
        hidden = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        found[rows] = normalize(hidden, dim=-1).numpy()
    return found
