"""``train --track``: runs read back from MLflow and from TensorBoard's event files."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.drawings import COLORS, draw_dataset, draw_image
from tests.no_torch import run_without_torch

# MLflow warns about its own annotations and about its use of other packages.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:mlflow")

EPOCHS = 4
CURVES = {"loss", "learning_rate", "val_accuracy", "val_loss", "epoch_seconds"}
PROMPT = ["--method", "dip", "--epochs", EPOCHS, "--min-steps", 0, "--shots", 2]
VECTORS = ["--method", "class-vectors"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("photos"), train=4, test=2)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an SQLite database for the tests of this module; its tables take seconds."""
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def command(photos: Path, tiny_folder: Path, *options: object) -> list[str]:
    return [
        str(word)
        for word in (
            "train", photos, "--out", "pets.safetensors", "--backbone", tiny_folder, "--no-cache",
            "--json", *options,
        )
    ]  # fmt: skip


def mlflow_run(database: str, place: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database)
    return client, client.get_run(place.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("options", [PROMPT, VECTORS, ["--method", "zero-shot"]])
def test_mlflow_has_the_run(
    run: Run, photos: Path, tiny_folder: Path, database: str, tmp_path: Path, options: list[object]
) -> None:
    done = run(
        *command(photos, tiny_folder, *options, "--track", "mlflow", "--track-uri", database),
        "--track-experiment", "colors", "--track-run", "first try",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    client, found = mlflow_run(database, document["tracked"])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first try"
    assert client.get_experiment(found.info.experiment_id).name == "colors"
    assert found.data.params["dataset"] == str(photos)
    assert found.data.params["method"] == document["method"]
    for name, value in document["training"].items():
        if isinstance(value, int | float | str):
            expected = value if isinstance(value, str) else json.dumps(value)
            assert found.data.params[name] == expected
    assert found.data.metrics["test/accuracy"] == document["metrics"]["test"]["accuracy"]
    assert found.data.metrics["file_bytes"] == document["file_bytes"]
    kept = Path(client.download_artifacts(found.info.run_id, "pets.safetensors", str(tmp_path)))
    assert kept.read_bytes() == Path("pets.safetensors").read_bytes()
    if options is PROMPT:
        for curve in CURVES:
            history = client.get_metric_history(found.info.run_id, curve)
            assert [point.step for point in history] == list(range(EPOCHS))


@pytest.mark.slow
def test_mlflow_has_a_run_per_seed_and_the_variables_name_the_place(
    run: Run, photos: Path, tiny_folder: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "seeds")

    done = run(*command(photos, tiny_folder, *PROMPT, "--seeds", "1,2", "--track", "mlflow"))

    assert done.exit_code == 0, done.output
    for seed, document in zip((1, 2), json.loads(done.stdout), strict=True):
        client, found = mlflow_run(database, document["tracked"])
        assert found.info.run_name == f"pets-seed{seed}"
        assert found.data.params["seed"] == str(seed)
        assert client.get_experiment(found.info.experiment_id).name == "seeds"
        history = client.get_metric_history(found.info.run_id, "loss")
        assert len(history) == EPOCHS


class _Broken(BaseHTTPRequestHandler):
    """A server of something else, or one that fails."""

    status: int

    def do_GET(self) -> None:
        self.send_error(self.status)

    do_POST = do_GET  # noqa: N815  # names of http.server

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def broken_server(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Broken", (_Broken,), {"status": request.param})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def check_kept(done: Any, photos: Path) -> None:
    """The training is whole: prompt, result, exit code 0, and one warning."""
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["tracked"] is None
    assert document["file_bytes"] == Path("pets.safetensors").stat().st_size
    assert "secret" not in done.output
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    [warning] = warnings
    assert warning.startswith("Warning: The tracker failed: ")
    assert warning.endswith("The run continues without it.")


@pytest.mark.slow
@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "http://host.invalid",
        "http://user:secret@127.0.0.1:9",
        "sqlite:////proc/none/mlflow.db",
        "nonsense://x",
        "folder",
    ],
)
def test_an_mlflow_that_cannot_be_reached_costs_no_training(
    run: Run, photos: Path, tiny_folder: Path, uri: str
) -> None:
    pytest.importorskip("mlflow")

    done = run(*command(photos, tiny_folder, *PROMPT, "--track", "mlflow", "--track-uri", uri))

    check_kept(done, photos)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://user:secret@host/mlflow", "https://host/mlflow"),
        ("https://token@host", "https://host"),
        ("postgresql://ps:p@ss@db/runs", "postgresql://db/runs"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_the_place_of_a_run_has_no_password(uri: str, shown: str) -> None:
    pytest.importorskip("mlflow")
    from prompt_serve.training.tracking.mlflow_run import without_password

    assert without_password(uri) == shown


@pytest.mark.slow
@pytest.mark.parametrize("broken_server", [404, 401, 500, 503], indirect=True)
def test_an_mlflow_that_fails_costs_no_training(
    run: Run, photos: Path, tiny_folder: Path, broken_server: str
) -> None:
    pytest.importorskip("mlflow")

    done = run(
        *command(photos, tiny_folder, *VECTORS, "--track", "mlflow", "--track-uri", broken_server)
    )

    check_kept(done, photos)


def events_of(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.parametrize("options", [PROMPT, VECTORS])
def test_event_files_have_the_run(
    run: Run, photos: Path, tiny_folder: Path, options: list[object]
) -> None:
    pytest.importorskip("tensorboardX")

    for number in (1, 2):
        done = run(
            *command(photos, tiny_folder, *options, "--track", "tensorboard"),
            "--track-dir", "logs",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        folder = Path("logs") / ("pets" if number == 1 else "pets-2")
        assert document["tracked"] == str(folder)
        events = events_of(folder)
        accuracy = events.Scalars("test/accuracy")
        assert [point.value for point in accuracy] == pytest.approx(
            [document["metrics"]["test"]["accuracy"]]
        )
        if options is PROMPT:
            for curve in CURVES:
                assert [point.step for point in events.Scalars(curve)] == list(range(EPOCHS))
        assert (folder / "pets.safetensors").read_bytes() == Path("pets.safetensors").read_bytes()
        [text] = events.Tensors("training/text_summary")
        assert json.loads(text.tensor_proto.string_val[0])["method"] == document["method"]
        settings = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert str(photos).encode() in settings


def test_independent_labels_are_tracked(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    lines = ["path,label"]
    for n in range(24):
        color, label = list(zip(COLORS.values(), ("sky", "grass", "sky;grass", ""), strict=True))[
            n % 4
        ]
        image = draw_image(tmp_path / "scenes" / f"{n}.png", color, n)
        lines.append(f"{image.relative_to(tmp_path)},{label}")
    (tmp_path / "scenes.csv").write_text("\n".join(lines) + "\n")

    done = run(
        *command(tmp_path / "scenes.csv", tiny_folder, "--multi-label", "--track", "tensorboard"),
        "--track-run", "labels",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["tracked"] == "runs/labels"
    [(part, measured)] = [
        (name, found) for name, found in document["metrics"].items() if "micro_f1" in found
    ]
    [point] = events_of(Path("runs/labels")).Scalars(f"{part}/micro_f1")
    assert point.value == pytest.approx(measured["micro_f1"])


@pytest.mark.long
def test_a_disk_that_is_full_for_the_events_costs_no_training(
    photos: Path, tiny_folder: Path
) -> None:
    """The queue of the usual writer would wait for ever."""
    pytest.importorskip("tensorboardX")
    at_most = 40_000  # bytes per file; those of the events are more

    done = subprocess.run(
        [
            sys.executable, "-m", "prompt_serve",
            *command(
                photos, tiny_folder, *PROMPT, "--epochs", 150, "--track", "tensorboard",
                "--no-sketch",
            ),
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (at_most, at_most)),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tracked"] is None
    assert "Warning: The tracker failed: [Errno 27] File too large" in done.stderr
    assert Path("pets.safetensors").is_file()


@pytest.mark.long
def test_an_interrupted_training_ends_its_run(
    photos: Path, tiny_folder: Path, database: str, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    words = command(
        photos, tiny_folder, *PROMPT, "--epochs", 1_000_000, "--log", log,
        "--track", "mlflow", "--track-uri", database, "--track-experiment", "interrupted",
    )  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "prompt_serve", *words])
    try:
        until = time.monotonic() + 300
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    finally:
        process.kill()
        process.wait()

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database)
    experiment = client.get_experiment_by_name("interrupted").experiment_id
    [found] = client.search_runs([experiment])
    assert found.info.status == "FAILED"
    assert client.get_metric_history(found.info.run_id, "loss")


@pytest.mark.slow
def test_class_vectors_are_tracked_without_torch(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")

    done = run_without_torch(
        tmp_path / "site", "-m", "prompt_serve", "train", str(photos), "--out", "a.safetensors",
        "--no-cache", "--track", "tensorboard",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "tracked      runs/a" in done.stdout
    assert events_of(Path("runs/a")).Scalars("test/accuracy")


@pytest.mark.slow
def test_no_tracker_is_imported_unless_asked(photos: Path, tiny_folder: Path) -> None:
    code = (
        "import sys\nfrom prompt_serve.cli.main import main\n"
        f"main({command(photos, tiny_folder, *VECTORS)!r}, standalone_mode=False)\n"
        "print({'mlflow', 'tensorboardX', 'tensorboard'} & set(sys.modules), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--track-uri sqlite:///x.db", "--track-uri needs --track mlflow."),
        ("--track-experiment x", "--track-experiment needs --track mlflow."),
        ("--track-dir x", "--track-dir needs --track tensorboard."),
        ("--track-run x", "--track-run needs --track."),
        ("--track tensorboard --track-uri x", "--track-uri needs --track mlflow."),
        ("--track mlflow --track-dir x", "--track-dir needs --track tensorboard."),
        ("--track wandb", "'wandb' is not one of 'mlflow', 'tensorboard'."),
    ],
)
def test_options_of_another_tracker_are_refused(
    run: Run, photos: Path, tiny_folder: Path, options: str, said: str
) -> None:
    done = run(*command(photos, tiny_folder, *VECTORS, *options.split()))

    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("tracker", "package"), [("mlflow", "mlflow"), ("tensorboard", "tensorboardX")]
)
def test_a_tracker_that_is_not_installed_is_said_before_the_training(
    run: Run, photos: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch,
    tracker: str, package: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)

    done = run(*command(photos, tiny_folder, *VECTORS, "--track", tracker))

    assert done.exit_code == 1, done.output
    assert f"pip install 'prompt-serve[{tracker}]'" in done.stderr
    assert list(Path().iterdir()) == []
