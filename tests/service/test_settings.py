"""Settings from the environment: defaults, units, and all errors at once."""

import re
from pathlib import Path

import pytest

from prompt_serve.bundle import shipped_bundle
from prompt_serve.errors import ConfigInvalid
from prompt_serve.service.settings import Settings
from tests.service.process import ROOT


def test_everything_has_a_default_under_one_home() -> None:
    settings = Settings.from_environment({"PROMPT_SERVE_HOME": "/srv/ps"})

    assert settings.bundle_path == shipped_bundle("embedded")
    assert settings.database == "sqlite:////srv/ps/registry.db"
    assert settings.device == "cpu"
    assert settings.cuda_device is None


def test_a_bundle_is_a_folder_or_a_backbone_that_comes_with_the_package() -> None:
    def path(bundle: str) -> Path:
        return Settings.from_environment({"PROMPT_SERVE_BUNDLE": bundle}).bundle_path

    assert path("embedded-vit") == shipped_bundle("embedded-vit")
    assert path("bundles/embedded") == Path("bundles/embedded")


def test_a_device_number_is_read() -> None:
    assert Settings.from_environment({"PROMPT_SERVE_DEVICE": "cuda:3"}).cuda_device == 3
    assert Settings.from_environment({"PROMPT_SERVE_DEVICE": "cuda"}).cuda_device == 0


def test_all_faults_are_reported_at_once() -> None:
    environment = {
        "PROMPT_SERVE_DEVICE": "auto",
        "PROMPT_SERVE_MAX_BATCH": "many",
        "PROMPT_SERVE_MAX_IMAGE": "3",
        "PROMPT_SERVE_GPU": "1",
    }
    with pytest.raises(ConfigInvalid, match="are invalid") as caught:
        Settings.from_environment(environment)

    text = str(caught.value)
    assert "PROMPT_SERVE_DEVICE='auto'" in text
    assert "PROMPT_SERVE_MAX_BATCH='many'" in text
    assert "did you mean PROMPT_SERVE_MAX_IMAGES?" in text
    assert "PROMPT_SERVE_GPU: unknown setting" in text
    assert len(caught.value.faults) == 4


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_a_request_that_could_never_be_admitted_is_refused_at_start() -> None:
    with pytest.raises(ConfigInvalid, match="never be admitted"):
        Settings.from_environment({"PROMPT_SERVE_MAX_QUEUE_IMAGES": "8"})


def test_what_kubernetes_sets_beside_a_service_called_prompt_serve_is_no_fault() -> None:
    Settings.from_environment(
        {
            "PROMPT_SERVE_SERVICE_HOST": "10.0.0.1",
            "PROMPT_SERVE_SERVICE_PORT_HTTP": "3000",
            "PROMPT_SERVE_PORT": "tcp://10.0.0.1:3000",
            "PROMPT_SERVE_PORT_3000_TCP_ADDR": "10.0.0.1",
        }
    )


def test_every_variable_that_a_document_names_is_known() -> None:
    documents = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
    ]
    found = {
        name
        for path in documents
        for name in re.findall(r"\bPROMPT_SERVE_[A-Z_]*[A-Z]\b", path.read_text())
    }
    assert {"PROMPT_SERVE_DATASETS", "PROMPT_SERVE_CACHE", "PROMPT_SERVE_HOME"} <= found
    unknown = []
    for name in sorted(found):
        try:
            Settings.from_environment({name: "x"})
        except ConfigInvalid as error:  # the value may well be invalid, the name may not
            unknown += [fault for fault in error.faults if f"{name}=" not in fault]
    assert unknown == []
