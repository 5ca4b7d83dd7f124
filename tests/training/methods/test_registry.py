"""Methods by name: ours are all there, those of other packages join them, faulty ones harm none."""

import logging
import tomllib
from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.methods import METHODS, find_method
from prompt_serve.training.methods.registry import MethodRegistry
from tests.toy_method import SHIFT, install

ROOT = Path(__file__).parents[3]
GROUP = "prompt_serve.methods"
COOP = {"coop": "prompt_serve.training.methods.coop:METHOD"}


def others(registry: MethodRegistry) -> list[str]:
    """The methods beside CoOp and those that this package declares as entry points itself."""
    return [name for name in registry if name not in ("coop", "cocoop")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_every_method_goes_by_its_name() -> None:
    assert list(METHODS)[:3] == ["zero-shot", "class-vectors", "coop"]
    assert all(method.name == name for name, method in METHODS.items())
    assert find_method("dip") is METHODS["dip"]


def test_cocoop_is_declared_as_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][GROUP] == {"cocoop": "prompt_serve.research.cocoop:METHOD"}
    assert METHODS["cocoop"].name == "cocoop"


def test_a_method_of_another_package_is_found(folder: Path) -> None:
    install(folder, "found_shift", SHIFT, {"shift": "METHOD"})
    registry = MethodRegistry(COOP, group=GROUP)
    assert others(registry) == ["shift"]
    assert registry["shift"].summary == "One vector for all words."


@pytest.mark.parametrize(
    ("package", "code", "reason"),
    [
        ("no_import", "import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("raises", "raise RuntimeError('no license')", "RuntimeError: no license"),
        ("no_object", "", "AttributeError: module 'no_object' has no attribute 'METHOD'"),
        ("no_method", "METHOD = 'dip'", "it is a str, not a Method"),
        (
            "other_name",
            "from prompt_serve.training.methods.coop import METHOD",
            "the method is named 'coop'",
        ),
        (
            "no_settings",
            SHIFT.replace("(MethodSettings)", "").replace("settings=Shift", "settings=dict, #"),
            "its settings are <class 'dict'>, not a subclass of MethodSettings",
        ),
        (
            "no_help",
            SHIFT.replace('number(0.0, -1.0, 1.0, "Value of the shift before training.")', "0.0"),
            "its settings have no bounds and no help: first_shift",
        ),
        (
            "two_ways",
            SHIFT + "\nfrom dataclasses import replace\n"
            "METHOD = replace(METHOD, closed_form=lambda inputs, settings: None)\n",
            "it has both a learner and a closed form",
        ),
    ],
)
def test_a_faulty_method_is_named_with_its_package_and_harms_no_other(
    folder: Path, caplog: pytest.LogCaptureFixture, package: str, code: str, reason: str
) -> None:
    install(folder, package, code, {"shift": "METHOD"})
    registry = MethodRegistry(COOP, group=GROUP)
    assert registry["coop"].name == "coop"
    expected = f"Method 'shift' of {package} 1.2 cannot be loaded from {package}:METHOD: {reason}"
    with pytest.raises(ConfigInvalid) as caught:
        registry["shift"]
    assert expected in caught.value.message
    with caplog.at_level(logging.WARNING):
        assert others(registry) == []
        assert others(registry) == []
    assert [expected in record.message for record in caplog.records] == [True]  # once


def test_a_name_is_never_taken_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(folder, "first_shift", SHIFT, {"shift": "METHOD"})
    install(folder, "second_shift", SHIFT, {"shift": "METHOD", "coop": "METHOD"})
    registry = MethodRegistry(COOP, group=GROUP)
    assert others(registry) == ["shift"]
    assert registry["coop"].paper == "CoOp, arXiv 2109.01134, eq. 2"
    texts = sorted(record.getMessage() for record in caplog.records)
    assert len(texts) == 2
    assert texts[0] == (
        "Method 'coop' of second_shift 1.2 is ignored: prompt-serve has a method of that name."
    )
    assert texts[1].startswith("Method 'shift' of ")
    assert texts[1].endswith("_shift 1.2 has a method of that name.")
