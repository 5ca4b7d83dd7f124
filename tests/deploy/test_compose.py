"""deploy/compose.yaml and the files it mounts, checked by the linters of their programs."""

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from prompt_serve.service.settings import Settings
from tests.deploy.kubernetes import MANIFESTS, documents_in, pod_in
from tests.required import program_missing
from tests.service.process import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text()
SECRETS = {"DATABASE_PASSWORD": "database-secret", "GRAFANA_PASSWORD": "grafana-secret"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, variables: dict[str, str]) -> str:
    """Replace variables as Compose does; one with ``:?`` has to be set."""

    def value(found: re.Match[str]) -> str:
        name, operator, default = found.groups()
        if operator == "?" and not variables.get(name):
            raise KeyError(name)
        return variables.get(name) or (default if operator == "-" else "")

    return _VARIABLE.sub(value, text)


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE, SECRETS))["services"]
    return found


def test_compose_accepts_the_file() -> None:
    if find_spec("compose_spec") is None:
        program_missing("COMPOSE IS NOT TESTED HERE: pip install compose-spec")
    from_yaml = import_module("compose_spec").PyCompose.from_yaml

    compose = from_yaml(interpolated(COMPOSE, SECRETS))
    assert set(compose.service_names()) == {"service", "database", "prometheus", "grafana"}
    wrong = COMPOSE.replace("healthcheck:", "health:")
    with pytest.raises(ValueError, match="health"):
        from_yaml(interpolated(wrong, SECRETS))


def test_prometheus_accepts_its_configuration() -> None:
    if shutil.which("promtool") is None:
        program_missing("PROMETHEUS IS NOT TESTED HERE: apt-get install prometheus")
    command = ["promtool", "check", "config", "--syntax-only"]
    file = DEPLOY / "prometheus" / "prometheus.yml"
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    scraped = yaml.safe_load(file.read_text())["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": ["service:3000"]}]
    assert scraped["authorization"]["credentials_file"] == "/run/secrets/metrics_key"


def test_yaml_is_tidy() -> None:
    if find_spec("yamllint") is None:
        program_missing("YAML IS NOT LINTED HERE: pip install yamllint")
    files = [
        str(path)
        for path in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")]
        if path.parent.name != "templates"
    ]
    command = [sys.executable, "-m", "yamllint", "--strict", "-c", str(ROOT / ".yamllint")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_no_password_has_a_default(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        interpolated(COMPOSE, {**SECRETS, missing: ""})


def test_passwords_come_from_the_environment_file_alone() -> None:
    example = (DEPLOY / "compose.env.example").read_text()
    values = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    assert values == dict.fromkeys(SECRETS, "")
    used = set(re.findall(r"\$\{(\w+)", COMPOSE))
    assert used == {*SECRETS, *re.findall(r"^# (\w+)=", example, re.MULTILINE)}
    for name in re.findall(r"(\w*(?:PASSWORD|KEY|SECRET)\w*): (.*)", COMPOSE):
        assert name[1].startswith("${"), name


def test_every_service_has_a_health_check_and_starts_again() -> None:
    for name, service in services().items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name


def test_only_named_volumes_and_the_files_of_the_repository_are_mounted() -> None:
    compose = yaml.safe_load(interpolated(COMPOSE, SECRETS))
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
    ]
    made_by_users = {"./bundles"}
    paths = {source for source in mounted if source.startswith("./")} - made_by_users

    assert all((DEPLOY / path).exists() for path in paths), paths
    assert {source for source in mounted if not source.startswith(".")} == compose["volumes"].keys()


def test_the_container_is_that_of_the_manifests() -> None:
    container = pod_in(documents_in(MANIFESTS / "base" / "deployment.yaml"))["containers"][0]
    service = services()["service"]

    assert service["command"] == container["args"]
    assert service["read_only"] is True
    assert service["cap_drop"] == container["securityContext"]["capabilities"]["drop"]
    settings = Settings.from_environment(service["environment"])
    assert str(settings.home_path) == service["volumes"][0].split(":")[1]
    assert settings.database_url is not None
    assert SECRETS["DATABASE_PASSWORD"] not in settings.database_url
    assert service["environment"]["PGPASSWORD"] == SECRETS["DATABASE_PASSWORD"]


def test_the_documents_name_the_image_and_its_command() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    built = set(re.findall(r"bentoml containerize \S+ -t (\S+)", operations))
    assert built == {services()["service"]["image"]}
    values = yaml.safe_load((DEPLOY / "helm" / "prompt-serve" / "values.yaml").read_text())
    assert built == {f"{values['image']['repository']}:{values['image']['tag']}"}
    command = services()["service"]["command"]
    assert command[:3] == ["env", "-u", "BENTOML_CONTAINERIZED"]
    assert "env -u BENTOML_CONTAINERIZED" in operations
    assert {"--timeout-graceful-shutdown", "--timeout-keep-alive"} <= set(command)
    assert all(f"`{option}`" in operations for option in command if option.startswith("--timeout"))


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "prompt-serve.yaml").read_text())[
        "providers"
    ]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    dashboard = json.loads((DEPLOY / "grafana" / "prompt-serve.json").read_text())

    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services()
    folder = str(Path(mounts["./grafana/prompt-serve.json"]).parent)
    assert provider["options"]["path"] == folder
    (variable,) = (one for one in dashboard["templating"]["list"] if one["type"] == "datasource")
    assert variable["query"] == source["type"]
