"""A run as event files of TensorBoard.

Events are written synchronously: the queue of tensorboardX blocks for ever once its writer has
failed, for example on a full disk.
"""

import json
import shutil
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event


class TensorboardRun:
    """One folder of event files, ``FOLDER/NAME``, or ``NAME-2`` if there is one already."""

    def __init__(self, name: str, *, folder: Path, dataset: str) -> None:
        self._folder = _new_folder(folder, name)
        self.place = str(self._folder)
        self._writer = EventsWriter(str(self._folder / "events"))
        self._dataset = dataset
        self._last_step = 0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._last_step = max(self._last_step, step)
        for name, value in values.items():
            self._write(summary.scalar(name, value), step)
        self._writer.flush()

    def finish(
        self,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        document: Mapping[str, Any],
        file: Path,
    ) -> None:
        settings = {"dataset": self._dataset, **parameters}
        for part in summary.hparams(dict(settings), dict(metrics)):
            self._write(part, 0)
        text = json.dumps(document, ensure_ascii=False, indent=2)
        self._write(summary.text("training", f"    {text.replace(chr(10), chr(10) + '    ')}"), 0)
        self.metrics(metrics, self._last_step)
        shutil.copy(file, self._folder)
        self._writer.close()

    def fail(self) -> None:
        self._writer.close()

    def _write(self, content: Any, step: int) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=content))


def _new_folder(folder: Path, name: str) -> Path:
    for number in count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise
        return path
    raise AssertionError("count() does not end")
