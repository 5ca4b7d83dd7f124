"""Checks of manifests for Kubernetes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.service.process import ROOT

OLDEST = "1.31"  # release that the manifests are validated against
MANIFESTS = ROOT / "deploy" / "kubernetes"


def documents_of(*texts: str) -> list[dict[str, Any]]:
    return [
        document for text in texts for document in yaml.safe_load_all(text) if document is not None
    ]


def documents_in(*paths: Path) -> list[dict[str, Any]]:
    return documents_of(*(path.read_text() for path in paths))


def check(documents: Iterable[dict[str, Any]]) -> None:
    """Validate documents against the schemas of Kubernetes."""
    for document in documents:
        # The schema of a ServiceMonitor belongs to its operator; a kustomization is no resource.
        if document["kind"] not in ("ServiceMonitor", "Kustomization"):
            kubernetes_validate.validate(document, OLDEST, strict=True)


def deployment_in(documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == "Deployment")
    return found


def pod_in(documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the pod's spec of the only deployment."""
    spec: dict[str, Any] = deployment_in(documents)["spec"]["template"]["spec"]
    return spec


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}
