"""Metrics of several workers as one, each in its own process as in the service."""

import os
import subprocess
import sys
from pathlib import Path

from prompt_serve.service.observability import metrics

# A worker that counts, has images in its queue, and exits with or without cleaning up.
_WORKER = """
import os, sys
from prompt_serve.service.observability import metrics
metrics.images_of("answered").inc(3)
metrics.queue_images.inc(2)
metrics.decode_seconds.observe(0.01)
if "orderly" in sys.argv: metrics.remove_this_worker()
if "scrape" in sys.argv: sys.stdout.write(metrics.exposition().decode())
os._exit(0)
"""


def worker(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        # BentoML's folder, which all services of its home share; it must not be used.
        "PROMETHEUS_MULTIPROC_DIR": str(folder.parent / "of-all"),
        "_PROMPT_SERVE_METRICS_FOLDER": str(folder),
    }
    command = [sys.executable, "-c", _WORKER, *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_workers_are_added_up_and_the_queues_of_dead_ones_forgotten(tmp_path: Path) -> None:
    worker(tmp_path, "orderly")
    worker(tmp_path)  # dies with two images in its queue
    text = worker(tmp_path, "scrape")

    assert 'prompt_serve_images_total{result="answered"} 9.0' in text
    assert "prompt_serve_decode_seconds_count 3.0" in text
    assert "prompt_serve_queue_images 2.0" in text  # of the one that is alive
    assert "_created" not in text
    assert not (tmp_path.parent / "of-all").exists()


def test_no_metric_has_a_label_that_a_caller_chooses() -> None:
    allowed = {"method", "route", "status", "kind", "result", "key"}  # keys: see below
    of_the_service = {"version", "backbone", "precision", "provider"}
    for name, metric in vars(metrics).items():
        labels = set(getattr(metric, "_labelnames", ()))
        assert labels <= allowed or labels == of_the_service, name


def test_any_number_of_keys_makes_a_bounded_number_of_series() -> None:
    for n in range(500):
        metrics.count_request_of(f"key-{n}", images=2)
    for metric in (metrics.key_requests, metrics.key_images):
        [family] = metric.collect()
        keys = {sample.labels["key"] for sample in family.samples}
        assert len(keys) == 201
        assert "other" in keys
