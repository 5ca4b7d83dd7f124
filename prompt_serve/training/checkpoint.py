"""Training checkpoints, from which an interrupted run resumes bit-exactly."""

import io
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from prompt_serve.errors import ConfigInvalid
from prompt_serve.files import atomic_file

_log = logging.getLogger(__name__)

# Raised by ``torch.load``, and by looking at its result, for files that are not checkpoints.
_UNREADABLE = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class Resumable(Protocol):
    """State of a training run that a checkpoint saves and restores."""

    @property
    def learner(self) -> nn.Module:
        """Parameters and buffers, such as codebooks and masks."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def generator(self) -> torch.Generator: ...

    @property
    def rng(self) -> np.random.Generator: ...


class Checkpoint:
    """Checkpoint file of one run, replaced as a whole after every epoch.

    It holds the learner with its buffers (codebooks, masks), the optimizer's momentum, the state
    of both random generators and the history.

    Args:
        path: file to write.
        identity: settings and data of the run (JSON types); a checkpoint with another identity
            is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = json.dumps(identity, sort_keys=True)
        self._warned = False

    def save(self, run: Resumable, history: Sequence[Mapping[str, Any]]) -> None:
        """Write atomically: the path holds the old checkpoint or the complete new one.

        One that cannot be written is a warning, not the end of the run.
        """
        state = {
            "identity": self._identity,
            "history": json.dumps(list(history)),
            "learner": run.learner.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "generator": run.generator.get_state(),
            "rng": json.dumps(run.rng.bit_generator.state),
        }
        content = io.BytesIO()  # torch reports a full disk as an error of its own
        torch.save(state, content)
        try:
            with atomic_file(self._path, mode=0o600, sync=True) as temporary:
                temporary.write_bytes(content.getbuffer())
        except OSError as error:
            if not self._warned:
                _log.warning(
                    "Warning: %s cannot be written: %s. The run continues, and cannot be "
                    "resumed from here.",
                    self._path,
                    error.strerror or error,
                )
            self._warned = True

    def load(self, run: Resumable) -> list[dict[str, Any]]:
        """Restore the run from its checkpoint; return the history, empty without a file.

        Raises:
            ConfigInvalid: the file belongs to another run (the error lists the differences), or
                cannot be read.
        """
        if not self._path.exists():
            return []
        state = self._read()
        if state["identity"] != self._identity:
            raise ConfigInvalid(
                f"{self._path} is the checkpoint of another run. Delete it to start anew, or name "
                f"another file:",
                _differences(json.loads(state["identity"]), json.loads(self._identity)),
            )
        try:
            run.learner.load_state_dict(state["learner"])
            run.optimizer.load_state_dict(state["optimizer"])
            run.generator.set_state(state["generator"])
            run.rng.bit_generator.state = json.loads(state["rng"])
            history: list[dict[str, Any]] = json.loads(state["history"])
            return [{**record, "idk": tuple(record["idk"])} for record in history]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self._path, weights_only=True, map_location="cpu")
            json.loads(state["identity"])
        except _UNREADABLE as error:
            raise self._unreadable(error) from error
        return state

    def _unreadable(self, error: Exception) -> ConfigInvalid:
        return ConfigInvalid(
            f"{self._path} cannot be read as a checkpoint: {error}. Delete it to start anew."
        )


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    # The learning rate of the run, not the setting it came from, which may be "auto".
    flat = [{**side.get("config", {}), **side, "config": None} for side in (saved, current)]
    return [
        f"{name}: {flat[0].get(name)!r} there, {flat[1].get(name)!r} here"
        for name in sorted({*flat[0], *flat[1]})
        if flat[0].get(name) != flat[1].get(name)
    ]
