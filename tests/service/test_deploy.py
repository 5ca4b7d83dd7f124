"""Deployment: the built Bento, the image recipe, the Kubernetes manifests."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prompt_serve.service.settings import Settings
from tests.deploy.kubernetes import (
    MANIFESTS,
    check,
    deployment_in,
    documents_in,
    documents_of,
    environment_of,
    pod_in,
)
from tests.service.process import ROOT, Served, environment, free_port, stop, wait_until_ready

OVERLAYS = ("cpu", "cuda", "monitoring")
USER_ID = "1034"  # of the user "bentoml" in an image

needs_kustomize = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which renders the manifests, is missing"
)


def _rendered(overlay: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(MANIFESTS / overlay)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return documents_of(done.stdout)


def test_every_manifest_is_what_kubernetes_accepts() -> None:
    documents = documents_in(*MANIFESTS.rglob("*.yaml"))
    check(documents)

    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} <= {
        document["kind"] for document in documents
    }


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_renders_to_what_kubernetes_accepts(overlay: str) -> None:
    documents = _rendered(overlay)
    check(documents)
    for document in documents:
        assert document["metadata"]["name"].startswith("prompt-serve")


@needs_kustomize
@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_the_service_selects_its_pods_and_they_hold_no_rights(overlay: str) -> None:
    documents = _rendered(overlay)
    pod = deployment_in(documents)["spec"]["template"]
    container = pod["spec"]["containers"][0]
    selectors = [
        document["spec"]["selector"].get("matchLabels", document["spec"]["selector"])
        for document in documents
        if document["kind"] in ("Service", "Deployment", "PodDisruptionBudget")
    ]
    rights = container["securityContext"]

    assert all(selector.items() <= pod["metadata"]["labels"].items() for selector in selectors)
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert str(pod["spec"]["securityContext"]["runAsUser"]) == USER_ID
    assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False)
    assert rights["capabilities"] == {"drop": ["ALL"]}
    probes = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness")]
    assert probes == ["/readyz", "/livez"]
    asked_for = {"cpu": "cpu", "cuda": "cuda"}[overlay]
    assert environment_of(container)["PROMPT_SERVE_DEVICE"] == asked_for
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "cuda")


def test_the_manifests_set_what_the_service_reads() -> None:
    container = pod_in(documents_in(MANIFESTS / "base" / "deployment.yaml"))["containers"][0]
    settings = Settings.from_environment(environment_of(container))

    writable = {
        mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
    }
    assert str(settings.home_path) in writable
    for name in ("HOME", "BENTOML_HOME"):
        assert any(environment_of(container)[name].startswith(path) for path in writable)


def test_requests_in_flight_end_before_the_pod_is_killed() -> None:
    spec = pod_in(documents_in(MANIFESTS / "base" / "deployment.yaml"))
    container = spec["containers"][0]
    waits = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    arguments = container["args"]
    answers = float(arguments[arguments.index("--timeout-graceful-shutdown") + 1])

    assert waits + answers < spec["terminationGracePeriodSeconds"]
    assert float(environment_of(container)["PROMPT_SERVE_SHUTDOWN_TIMEOUT_S"]) < answers


def test_an_image_installs_what_pyproject_says() -> None:
    command = [sys.executable, "deploy/requirements.py"]
    before = {path: path.read_text() for path in (ROOT / "deploy").glob("requirements*.txt")}
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        after = {path: path.read_text() for path in before}
    finally:
        for path, text in before.items():
            path.write_text(text)

    assert after == before, f"run {' '.join(command[1:])}"


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("bento"), "bentofile.yaml")


def _build(home: Path, recipe: str) -> Path:
    command = [sys.executable, "-m", "bentoml", "build", "-f", recipe, "--output", "tag", "."]
    settings = environment(home, home) | {"BENTOML_HOME": str(home)}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tag = re.search(r"__tag__:prompt_serve:(\w+)", done.stdout)
    assert tag is not None
    return home / "bentos" / "prompt_serve" / tag[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    ["bentofile.yaml", pytest.param("deploy/bentofile.cuda.yaml", marks=pytest.mark.long)],
)
def test_the_image_of_a_bento_runs_as_a_plain_user(
    recipe: str, bento: Path, tmp_path: Path
) -> None:
    built = bento if recipe == "bentofile.yaml" else _build(tmp_path, recipe)
    dockerfile = (built / "env" / "docker" / "Dockerfile").read_text()
    installed = (built / "env" / "python" / "requirements.txt").read_text()

    assert re.findall(r"^USER (\w+)", dockerfile, re.MULTILINE)[-1] == "bentoml"
    assert f"BENTO_USER_UID={USER_ID}" in dockerfile
    # Packages are installed before the project's files are there.
    assert not re.search(r"^(\.|-e)", installed, re.MULTILINE)
    assert ("nvidia-cudnn" in installed) == ("cuda" in recipe)
    assert installed.count("--hash=sha256:") > 1000
    assert ("ENV PROMPT_SERVE_DEVICE" in dockerfile) == ("cuda" in recipe)
    packed = built / "src" / "prompt_serve" / "service"
    assert (packed / "web" / "ui.js").is_file()
    assert list((packed / "storage" / "migrations" / "versions").glob("*.py"))
    assert not list(built.rglob("__pycache__"))


@pytest.mark.serve
@pytest.mark.slow
def test_a_bento_serves_from_a_read_only_file_system_as_a_plain_user(
    bento: Path, tiny_bundle: Path
) -> None:
    """As in the manifests: only scratch and home are writable."""
    with _open_folder() as folder:
        shutil.copytree(tiny_bundle, folder / "bundle")
        shutil.copytree(bento, folder / "bento")
        (folder / "bento").chmod(0o755)  # a build is closed to other users; an image gives it away
        for name in ("scratch", "home"):
            (folder / name).mkdir()
        port = free_port()
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                _jailed(_JAIL),
                cwd=folder,
                env=environment(folder / "home", folder / "bundle")
                | {
                    "BENTOML_HOME": str(folder / "scratch" / "bentoml"),
                    "BENTOML_CONTAINERIZED": "true",
                    "HOME": str(folder / "scratch"),
                    "TMPDIR": str(folder / "scratch"),
                    "PYTHONPATH": str(folder / "bento" / "src"),
                    "PORT_TO_BIND": str(port),
                    **_interpreter(),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        served = Served(f"http://127.0.0.1:{port}", folder / "home", log, process)
        try:
            wait_until_ready(served)
            body = {"name": "kept", "class_names": ["a", "b"]}
            added = httpx.post(f"{served.url}/v1/tasks", json=body, timeout=60)
            page = httpx.get(f"{served.url}/v1/ui", timeout=60)
            its_root = Path(f"/proc/{process.pid}/root")  # with what is mounted there alone
            registry = its_root / folder.relative_to("/") / "home" / "registry.db"
            owner = registry.stat().st_uid
        finally:
            stop(process)

        assert (added.status_code, page.status_code) == (201, 200)
        assert owner == int(USER_ID)


_OPEN_INTERPRETER = """
if [ -n "$CLOSED" ]; then
    mkdir -p interpreter
    mount --rbind "$BASE" interpreter
    mount -t tmpfs -o mode=0755 tmpfs "$CLOSED"
    mkdir -p "$BASE"
    mount --move interpreter "$BASE"
fi
as_user() { setpriv --reuid $USER_ID --regid $USER_ID --clear-groups --no-new-privs "$@"; }
"""

_PROBE = (
    _OPEN_INTERPRETER
    + """
as_user "$PYTHON" -c "
import bentoml, subprocess, sys
subprocess.run([sys.executable, '-V'], check=True)
"
"""
)

_JAIL = (
    _OPEN_INTERPRETER
    + """
for name in scratch home; do
    mount -t tmpfs -o mode=0700,uid=$USER_ID,gid=$USER_ID tmpfs $name
done
mount -o remount,bind,ro / || { mount --rbind / / && mount -o remount,bind,ro /; }
if touch /written 2>/dev/null; then echo "/ is not read-only"; exit 1; fi
exec setpriv --reuid $USER_ID --regid $USER_ID --clear-groups --no-new-privs \
    "$PYTHON" -m bentoml serve --host 127.0.0.1 --port $PORT_TO_BIND "$PWD/bento"
"""
)


def _jailed(script: str) -> list[str]:
    """Return a command that runs ``script`` in its own mount namespace."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]


def _interpreter() -> dict[str, str]:
    """Return the path of Python, and any parent folder of it that is closed to other users."""
    base = Path(sys.base_prefix)
    closed = [folder for folder in reversed(base.parents) if not folder.stat().st_mode & 0o001]
    return {
        "PYTHON": sys.executable,
        "BASE": str(base),
        "CLOSED": str(closed[0]) if closed else "",
        "USER_ID": USER_ID,
    }


@contextlib.contextmanager
def _open_folder() -> Iterator[Path]:
    """Create a folder that other users may enter; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="prompt-serve-"))
    try:
        folder.chmod(0o755)
        settings = os.environ | _interpreter()
        allowed = subprocess.run(
            _jailed(_PROBE), cwd=folder, env=settings, capture_output=True, text=True
        )
        if os.geteuid() != 0 or allowed.returncode != 0:
            pytest.skip(f"other users and mounts are not available here: {allowed.stderr[-300:]}")
        yield folder
    finally:
        shutil.rmtree(folder)
