"""Lines of results as a protocol would have written them."""

from collections.abc import Mapping
from typing import Any

from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import BASE_TO_NEW


def made_up(
    dataset: str,
    label: str,
    seed: int,
    accuracy: Mapping[str, float],
    *,
    protocol: str = BASE_TO_NEW,
    suite: str = "papers",
    backbone: str = "vit",
    method: str = "",
    shots: int = 16,
    images: int = 100,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    **more: Any,
) -> Result:
    values: dict[str, Any] = {
        "validation_accuracy": None,
        "trained_numbers": 516,
        "payload_bytes": 1_032,
        "learning_rate": 0.002,
        "seconds": 2.0,
    }
    return Result(
        protocol=protocol,
        suite=suite,
        dataset=dataset,
        method=method or label.lower(),
        label=label,
        seed=seed,
        shots=shots,
        accuracy=accuracy,
        calibration_error=dict.fromkeys(accuracy, 0.01),
        images={**dict.fromkeys(accuracy, images), "train": 16, "val": 4},
        classes=dict.fromkeys(accuracy, 10),
        config={"seed": seed, "epochs": 50} if config is None else config,
        backbone={"id": backbone, "fingerprint": f"print-{backbone}"},
        environment=environment or {},
        **{**values, **more},
    )


def base_new(dataset: str, label: str, seed: int, base: float, new: float, **more: Any) -> Result:
    return made_up(dataset, label, seed, {"base": base, "new": new}, **more)
