"""The table of ``docs/methods.md``: every method, base to new, three seeds.

The classes of the emoji sample are halved by name. The first half (base) is trained with 16
drawings per class in some styles; accuracy is measured on drawings of an unseen style, over the
base classes and, with the same vectors and other class names, over the new ones. H is the harmonic
mean of the two averages. Text methods run on the embedded backbone, methods that prompt the image
tower on the small ViT. Learning rates of all text methods, CoOp included, are selected on
validation images (``--learning-rate auto``); image methods use their default.

    python -m benchmarks.methods_table --results methods.jsonl --document docs/methods.md

Every finished row is stored in the results file, so an interrupted run resumes. The document is
rewritten between its two ``methods-table`` markers.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.learned_vs_zero_shot import emoji_folder
from prompt_serve.training.class_sets import halves, with_classes
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.feature_provider import image_data
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import evaluate_prompt
from prompt_serve.training.methods import METHODS
from prompt_serve.training.settings import AUTO
from prompt_serve.training.train import train_prompt

TEXT, IMAGE = "embedded", "embedded-vit"
# The image tower runs at every step: more and smaller steps, as in MaPLe and ADAPT.
SMALL_STEPS = {"epochs": 25, "batch_size": 8}


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One line of the table."""

    label: str
    backbone: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one seed of a row."""

    label: str
    backbone: str
    seed: int
    settings: dict[str, Any]
    trained: int  # parameters updated by SGD
    payload_bytes: int  # learned numbers in the prompt file
    seconds: float  # training time over all learning rates tried, without feature extraction
    learning_rate: float | None
    base: float
    new: float
    calibration_error: float  # base classes
    extra: dict[str, Any] = field(default_factory=dict)


def rows() -> list[MethodRow]:
    text: list[tuple[str, dict[str, Any]]] = [
        ("zero-shot", {"method": "zero-shot"}),
        ("CoOp", {"method": "coop"}),
        ("CoOp, depth 4", {"method": "coop", "depth": 4}),
        ("CoOp + noise 0.01", {"method": "coop", "noise_std": 0.01}),
        ("DIP, r = 1", {"method": "dip"}),
        ("DIP, r = 1, dropout 0.2", {"method": "dip", "dropout": 0.2}),
        ("DIP, r = 4", {"method": "dip", "rank": 4}),
        ("DIP, r = 1, no frozen words", {"method": "dip", "frozen_init": False}),
        ("DIP, r = 1, depth 4", {"method": "dip", "depth": 4}),
        ("DIP, Alg. 1", {"method": "dip-alg1"}),
        ("DIP, Alg. 2", {"method": "dip-alg2"}),
        ("QCoOp, 1 bit", {"method": "qcoop", "bits": 1}),
        ("QCoOp, 2 bits", {"method": "qcoop", "bits": 2}),
        ("QCoOp, 4 bits", {"method": "qcoop", "bits": 4}),
        ("QCoOp, 8 bits", {"method": "qcoop", "bits": 8}),
        ("CoOp, 1 bit afterwards (PTQ)", {"method": "qcoop", "bits": 1, "quantization": "ptq"}),
        ("DIP, r = 1, 1 bit", {"method": "dip", "bits": 1}),
        ("DIP, r = 1, 4 bits", {"method": "dip", "bits": 4}),
        ("KgCoOp", {"method": "kgcoop"}),
        ("ProGrad", {"method": "prograd"}),
        ("PromptSRC, text side", {"method": "promptsrc"}),
        ("CoCoOp", {"method": "cocoop", "epochs": 10}),
    ]
    on_vit: list[tuple[str, dict[str, Any]]] = [
        ("zero-shot", {"method": "zero-shot"}),
        ("CoOp", {"method": "coop"}),
        ("DIP, r = 1", {"method": "dip"}),
    ]
    image: list[tuple[str, dict[str, Any]]] = [
        ("DIP, image branch, r = 1", {"method": "dip", "branch": "image"}),
        ("DIP, image branch, r = 1, depth 6", {"method": "dip", "branch": "image", "depth": 6}),
        ("VPT, shallow", {"method": "vpt", "depth": 1}),
        ("VPT, deep", {"method": "vpt"}),
        ("IVLP", {"method": "ivlp"}),
        ("MaPLe", {"method": "maple"}),
        ("DIP+MaPLe", {"method": "dip-maple"}),
        ("QMaPLe, 4 bits", {"method": "qmaple"}),
        ("ADAPT, T = 16", {"method": "adapt", "tokens": 16}),
        ("ADAPT, T = 32", {"method": "adapt", "tokens": 32}),
        ("ADAPT, T = 64", {"method": "adapt", "tokens": 64}),
        ("ADAPT, T = 32, 4 bits", {"method": "adapt", "tokens": 32, "bits": 4}),
        ("ADAPT, T = 32, 1 bit", {"method": "adapt", "tokens": 32, "bits": 1}),
    ]
    return [
        *(MethodRow(label=label, backbone=TEXT, settings=selected) for label, selected in text),
        *(MethodRow(label=label, backbone=IMAGE, settings=selected) for label, selected in on_vit),
        *(
            MethodRow(label=label, backbone=IMAGE, settings={**SMALL_STEPS, **selected})
            for label, selected in image
        ),
    ]


def measure(row: MethodRow, backbone: Backbone, seed: int) -> Outcome:
    base, new = halves(read_dataset(emoji_folder()))
    as_image_method = METHODS[row.settings["method"]].prompts_images(
        make_config(row.settings).settings
    )
    learns = METHODS[row.settings["method"]].learner is not None
    rate = AUTO if learns and not as_image_method else None
    config = make_config({"learning_rate": rate, **row.settings, "seed": seed})
    result = train_prompt(backbone, base, config, cache=FeatureCache())
    images = image_data(
        new, backbone, as_pixels=as_image_method, cache=None if as_image_method else FeatureCache()
    )
    other = with_classes(result.prompt, new.class_names, backbone)
    measured = result.comparisons["test"].prompt
    return Outcome(
        label=row.label,
        backbone=row.backbone,
        seed=seed,
        settings=row.settings,
        trained=result.trained_numbers,
        payload_bytes=result.prompt.payload_bytes,
        seconds=result.seconds.get("learning", 0.0),
        learning_rate=result.prompt.training["learning_rate"],
        base=measured.accuracy,
        new=evaluate_prompt(other, backbone, images).accuracy,
        calibration_error=measured.calibration_error,
        extra=dict(result.history[-1].facts) if result.history else {},
    )


def table(outcomes: Sequence[Outcome]) -> Iterable[str]:
    for backbone in dict.fromkeys(outcome.backbone for outcome in outcomes):
        yield f"On `{backbone}`:"
        yield ""
        yield "| method | source | trained | payload | seconds | base % | new % | H | ECE % |"
        yield "|---|---|---|---|---|---|---|---|---|"
        selected = [outcome for outcome in outcomes if outcome.backbone == backbone]
        for label in dict.fromkeys(outcome.label for outcome in selected):
            yield _line([outcome for outcome in selected if outcome.label == label])
        yield ""


def _line(seeds: Sequence[Outcome]) -> str:
    first = seeds[0]
    base, new = ([100 * getattr(o, part) for o in seeds] for part in ("base", "new"))
    means = statistics.mean(base), statistics.mean(new)
    cells = [
        first.label,
        METHODS[first.settings["method"]].paper or "-",
        f"{first.trained:,}",
        f"{round(statistics.mean(o.payload_bytes for o in seeds)):,} B",
        f"{statistics.mean(o.seconds for o in seeds):.1f}",
        spread(base),
        spread(new),
        f"{2 * means[0] * means[1] / max(sum(means), 1e-9):.1f}",
        f"{statistics.mean(100 * o.calibration_error for o in seeds):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines file to append to")
    parser.add_argument("--document", type=Path, help="Markdown file to update")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="run only rows whose label or backbone contains this text"
    )
    arguments = parser.parse_args()

    done = [Outcome(**json.loads(line)) for line in _lines(arguments.results)]
    keys = {(o.label, o.backbone, o.seed) for o in done}
    backbones: dict[str, Backbone] = {}
    for row in rows():
        if arguments.only and arguments.only not in f"{row.label} [{row.backbone}]":
            continue
        for seed in range(1, arguments.seeds + 1):
            if (row.label, row.backbone, seed) in keys:
                continue
            if row.backbone not in backbones:
                backbones[row.backbone] = load_backbone(row.backbone)
            outcome = measure(row, backbones[row.backbone], seed)
            done.append(outcome)
            with arguments.results.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            print(
                f"{row.backbone} {row.label} seed {seed}: base {outcome.base:.1%} "
                f"new {outcome.new:.1%}, {outcome.seconds:.0f} s",
                flush=True,
            )
    order = {(row.label, row.backbone): number for number, row in enumerate(rows())}
    done = [o for o in done if (o.label, o.backbone) in order]
    done.sort(key=lambda o: (order[o.label, o.backbone], o.seed))
    lines = "\n".join(table(done)).strip()
    print(lines)
    if arguments.document:
        put(arguments.document, "methods-table", lines)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def put(document: Path, name: str, lines: str) -> None:
    """Replace the text between the markers ``name`` of a Markdown file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n\n{lines}\n\n{end}{after}")


if __name__ == "__main__":
    main()
