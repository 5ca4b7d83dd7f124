"""Checkpoints of a run, from which it goes on exactly: same bytes as if it had never stopped."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prompt_serve.errors import ConfigInvalid
from prompt_serve.files import atomic_file

if TYPE_CHECKING:
    from prompt_serve.training.loop import Run

# What ``torch.load`` and a look at the result raise for files that are no checkpoint.
_UNREADABLE = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class Checkpoint:
    """One file, replaced whole after every epoch.

    It holds the learner with its buffers (codebooks, masks), the optimizer's momentum, the state
    of both random generators and the history.

    Args:
        path: of the file.
        identity: of the run (JSON types); a checkpoint of another run is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = json.dumps(identity, sort_keys=True)

    def save(self, run: "Run", history: Sequence[Mapping[str, Any]]) -> None:
        """Write atomically: the path holds the old checkpoint or the whole new one."""
        state = {
            "identity": self._identity,
            "history": json.dumps(list(history)),
            "learner": run.learner.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "generator": run.generator.get_state(),
            "rng": json.dumps(run.rng.bit_generator.state),
        }
        with atomic_file(self._path, mode=0o600, sync=True) as temporary:
            torch.save(state, temporary)

    def load(self, run: "Run") -> list[dict[str, Any]]:
        """Put a run where its checkpoint left it; returns the history, empty without a file.

        Raises:
            ConfigInvalid: the file is of another run (the differences are listed), or cannot be
                read.
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


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    # The learning rate of the run, not the setting it came from, which may be "auto".
    flat = [{**side.get("config", {}), **side, "config": None} for side in (theirs, ours)]
    return [
        f"{name}: {flat[0].get(name)!r} there, {flat[1].get(name)!r} here"
        for name in sorted({*flat[0], *flat[1]})
        if flat[0].get(name) != flat[1].get(name)
    ]
