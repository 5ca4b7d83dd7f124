"""A run in MLflow: on a server or in a database, by its tracking URI."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from prompt_serve import __version__

FLUSH_S = 1.0  # metrics are sent at most this often: an epoch may take milliseconds
# A server that does not answer must not hold up the training: MLflow's own defaults are 7 and 120.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class MlflowRun:
    """One run of an experiment."""

    def __init__(self, name: str, *, uri: str | None, experiment: str, dataset: str) -> None:
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        for logger in ("mlflow", "alembic"):  # they report every table of a new database
            logging.getLogger(logger).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)
        uri = str(self._client.tracking_uri)
        run = self._client.create_run(
            _experiment_id(self._client, experiment),
            run_name=name,
            tags={"mlflow.source.name": "prompt-serve train", "prompt_serve.version": __version__},
        )
        self._id: str = run.info.run_id
        self.place = f"run {self._id} of experiment {experiment!r}, {without_password(uri)}"
        self._client.log_batch(self._id, params=[Param("dataset", dataset)])
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent >= FLUSH_S:
            self._send()

    def finish(
        self,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        document: Mapping[str, Any],
        file: Path,
    ) -> None:
        self.metrics(metrics, step=0)
        self._send()
        self._client.log_batch(
            self._id, params=[Param(name, value) for name, value in parameters.items()]
        )
        self._client.log_dict(self._id, dict(document), "training.json")
        self._client.log_artifact(self._id, str(file))
        self._client.set_terminated(self._id)

    def fail(self) -> None:
        self._send()
        self._client.set_terminated(self._id, status="FAILED")

    def _send(self) -> None:
        at_once = 1000  # the limit of a request
        for start in range(0, len(self._waiting), at_once):
            self._client.log_batch(self._id, metrics=self._waiting[start : start + at_once])
        self._waiting = []
        self._sent = time.monotonic()


def without_password(uri: str) -> str:
    """Return a URI without the user and password in it."""
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process has just created it, unless it is a real error
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
