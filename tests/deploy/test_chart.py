"""The Helm chart, linted and rendered by Helm's own engine (``pip install helm-python-sdk``)."""

import json
import os
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from prompt_serve import __version__
from prompt_serve.service.settings import Settings
from tests.deploy.kubernetes import (
    MANIFESTS,
    OLDEST,
    check,
    deployment_in,
    documents_in,
    documents_of,
    environment_of,
    pod_in,
)
from tests.docs.pages import all_blocks
from tests.required import program_missing
from tests.service.process import ROOT

Render = Callable[[dict[str, Any]], list[dict[str, Any]]]

CHART = ROOT / "deploy" / "helm" / "prompt-serve"
PAGE = ROOT / "docs" / "how-to" / "kubernetes.md"
EXTERNAL: dict[str, Any] = {"database": {"existingSecret": "prompt-serve-database"}}
EVERYTHING: dict[str, Any] = {
    **EXTERNAL,
    "image": {"repository": "registry.example.com/prompt-serve", "tag": "cuda"},
    "imagePullSecrets": ["registry"],
    "device": "cuda",
    "bundle": "/bundles/served",
    "bundleClaim": "prompt-serve-bundles",
    "settings": {"PROMPT_SERVE_MAX_IMAGES": "128", "OTEL_TRACES_EXPORTER": "otlp"},
    "service": {"type": "LoadBalancer", "port": 8080},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "32m"},
        "host": "ps.example.com",
        "tlsSecret": "certificate",
    },
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}
VALUES: list[dict[str, Any]] = [
    {},
    {"persistence": {"existingClaim": "mine"}},
    {"persistence": {"storageClass": "fast"}},
    {**EXTERNAL, "replicas": 3},
    {"device": "cuda"},
    {"networkPolicy": {"enabled": False}},
    EVERYTHING,
    *(yaml.safe_load(block.text) for block in all_blocks(PAGE) if block.language == "yaml"),
]


@pytest.fixture(scope="module")
def helm() -> Any:
    if find_spec("helm_python") is None:
        program_missing("THE CHART IS NOT TESTED HERE: pip install helm-python-sdk")
    return import_module("helm_python")


@pytest.fixture
def render(helm: Any) -> Render:
    """Return a function of values: what an installation named prompt-serve creates."""

    def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
        with helm.Chart.load(os.fspath(CHART)) as chart:
            chart.validate_schema(values)
            files = chart.render(values, name="prompt-serve")
        return documents_of(*(text for name, text in files.items() if name.endswith(".yaml")))

    return rendered


@pytest.mark.parametrize("values", VALUES)
def test_helm_finds_no_fault(values: dict[str, Any], helm: Any) -> None:
    report = helm.lint(os.fspath(CHART), values, strict=True, kube_version=f"v{OLDEST}.0")

    assert report["total_charts_linted"] == 1
    # The chart has no icon, which Helm mentions as information.
    assert [one for one in report["messages"] if one["severity"] > 1] == []
    assert report["errors"] == []


@pytest.mark.parametrize("values", VALUES)
def test_every_rendering_is_what_kubernetes_accepts(values: dict[str, Any], render: Render) -> None:
    documents = render(values)
    check(documents)

    pod = pod_in(documents)
    assert len({document["metadata"]["name"] for document in documents}) == 1
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    claims = [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"]
    used = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
    assert set(claims) <= set(used)


def test_every_part_that_is_switched_on_is_there(render: Render) -> None:
    always = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}

    kinds = {document["kind"] for document in render({})}
    assert kinds == {*always, "PersistentVolumeClaim"}
    kinds = {document["kind"] for document in render(EVERYTHING)}
    assert kinds == {*always, "Ingress", "HorizontalPodAutoscaler", "ServiceMonitor"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_pod_is_that_of_the_manifests(device: str, render: Render) -> None:
    values = {**EXTERNAL, "bundle": "/bundles/served", "bundleClaim": "prompt-serve-bundles"}
    ours = pod_in(render({**values, "device": device}))
    theirs = pod_in(documents_in(MANIFESTS / "base" / "deployment.yaml"))
    container, expected = ours["containers"][0], theirs["containers"][0]

    own = {"PROMPT_SERVE_DEVICE", "PROMPT_SERVE_INFERENCE_THREADS"}  # set by the overlays
    secret = [one for one in container["env"] if "valueFrom" in one]
    assert secret == [one for one in expected["env"] if "valueFrom" in one]
    settings = environment_of(container)
    assert {k: v for k, v in settings.items() if k not in own} == environment_of(expected)
    assert settings["PROMPT_SERVE_DEVICE"] == device
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (device == "cuda")
    same = ("args", "ports", "securityContext", "volumeMounts", "lifecycle")
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    for part in (*same, *probes):
        assert container[part] == expected[part], part
    for part in theirs.keys() - {"containers"}:
        assert ours[part] == theirs[part], part


@pytest.mark.parametrize("values", VALUES)
def test_the_service_reads_what_the_chart_sets(values: dict[str, Any], render: Render) -> None:
    container = pod_in(render(values))["containers"][0]

    settings = Settings.from_environment(environment_of(container))
    assert settings.device == values.get("device", "cpu")


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 2},
        {"autoscaling": {"enabled": True}},
        {"bundle": "/bundles/served"},
    ],
)
def test_values_that_cannot_work_are_refused(
    values: dict[str, Any], render: Render, helm: Any
) -> None:
    with pytest.raises(helm.HelmRenderError, match=r"existingSecret|bundleClaim"):
        render(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 0},
        {"replicas": "2"},
        {"device": "gpu"},
        {"replicaCount": 2},
        {"image": {"repository": "", "tag": "cpu"}},
        {"settings": {"MAX_IMAGES": "1"}},
        {"settings": {"PROMPT_SERVE_MAX_IMAGES": 1}},
        {"bundle": "served"},
        {"persistence": {"size": "1 GB"}},
    ],
)
def test_misspelled_values_are_refused(values: dict[str, Any], render: Render, helm: Any) -> None:
    with pytest.raises(helm.HelmValuesError):
        render(values)


def test_sqlite_is_opened_by_one_pod_at_a_time(render: Render) -> None:
    assert deployment_in(render({}))["spec"]["strategy"] == {"type": "Recreate"}
    assert "rollingUpdate" in deployment_in(render(EXTERNAL))["spec"]["strategy"]


def test_the_schema_describes_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    assert values.keys() == schema["properties"].keys() - {"global"}


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["version"] == chart["appVersion"] == __version__


def test_every_value_is_used() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.(\w+)", templates))

    assert used == yaml.safe_load((CHART / "values.yaml").read_text()).keys()


def test_the_notes_lead_to_a_section_of_the_documents(helm: Any) -> None:
    with helm.Chart.load(os.fspath(CHART)) as chart:
        notes = chart.render({}, name="prompt-serve")["prompt-serve/templates/NOTES.txt"]

    page, section = re.findall(r"(docs/\S+\.md), \"([^\"]+)\"", notes)[0]
    assert f"\n## {section}\n" in (ROOT / page).read_text()
