"""Work folder of the pipeline. Every stage is skipped if its output exists."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "prompt_serve" / "assets"
EMBEDDED = ASSETS / "embedded"
EMBEDDED_VIT = ASSETS / "embedded-vit"
EMOJI_SAMPLE = ASSETS / "emoji"


@dataclass(frozen=True, kw_only=True)
class WorkDir:
    """The files of one run of the pipeline, all under one folder."""

    root: Path
    photo_features: Path  # npz: features (1000, 1280), one photograph per ImageNet class
    flowers: Path  # image folder with train/ and test/, for evaluation only

    @property
    def iconify(self) -> Path:
        return self.root / "iconify" / "package"

    @property
    def emojibase(self) -> Path:
        return self.root / "emojibase" / "package"

    @property
    def bpe(self) -> Path:
        return self.root / "bpe_8k.txt.gz"

    @property
    def trunk(self) -> Path:
        return self.root / "trunk.pt"

    @property
    def trunk_onnx(self) -> Path:
        return self.root / "trunk.onnx"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def names(self) -> Path:
        return self.root / "names.npz"

    @property
    def text_tower(self) -> Path:
        return self.root / "text_tower.pt"

    @property
    def projection(self) -> Path:
        return self.root / "projection.pt"

    @property
    def joint(self) -> Path:
        return self.root / "joint.pt"

    @property
    def balanced(self) -> Path:
        return self.root / "balanced.pt"

    @property
    def drawings(self) -> Path:
        return self.root / "drawings"

    @property
    def small_vit(self) -> Path:
        return self.root / "small_vit.pt"

    @property
    def vit_figures(self) -> Path:
        return self.root / "vit_figures.json"

    @property
    def figures(self) -> Path:
        return self.root / "figures.json"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` only on success.

    A stage that is killed half-way therefore never looks finished.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft{path.suffix}")
    yield draft
    draft.replace(path)
