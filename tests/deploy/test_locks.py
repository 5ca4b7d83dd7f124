"""The locked packages of the images: complete, exact, each with its hashes; and their audit."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip_requirements_parser import InstallRequirement, RequirementsFile

from tests.service.process import ROOT
from tools.audit import NOT_CHECKED, VULNERABLE, verdict

DEPLOY = ROOT / "deploy"
RECIPES = {"requirements.txt": ROOT / "bentofile.yaml"}
RECIPES["requirements.cuda.txt"] = DEPLOY / "bentofile.cuda.yaml"
LINUX = {"sys_platform": "linux", "python_version": "3.11", "python_full_version": "3.11.9"}


def script() -> Any:
    """Return deploy/requirements.py as a module."""
    spec = spec_from_file_location("requirements", DEPLOY / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked(name: str) -> list[InstallRequirement]:
    return list(RequirementsFile.from_file(str(script().lock_of(DEPLOY / name))).requirements)


@pytest.mark.parametrize("name", RECIPES)
def test_every_locked_package_is_exact_and_has_hashes(name: str) -> None:
    packages = locked(name)

    assert len(packages) > 50
    for package in packages:
        assert package.is_pinned, package.name
        hashes = package.hash_options
        assert hashes, package.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), package.name
        assert package.link is None, package.name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_lock_has_what_the_requirements_ask_for(name: str, machine: str) -> None:
    here = {**LINUX, "platform_machine": machine}
    versions = {
        canonicalize_name(package.name): package.get_pinned_version
        for package in locked(name)
        if package.marker is None or package.marker.evaluate(here)
    }
    lines = (DEPLOY / name).read_text().splitlines()
    asked = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(asked) > 20
    for requirement in asked:
        if requirement.marker is None or requirement.marker.evaluate(here):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"run make lock: {requirement}"


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items())
def test_the_image_installs_the_lock(name: str, recipe: Any) -> None:
    python = yaml.safe_load(recipe.read_text())["python"]

    assert (ROOT / python["requirements_txt"]).resolve() == script().lock_of(DEPLOY / name)
    assert python["lock_packages"] is False


def package(**facts: Any) -> dict[str, Any]:
    return {"name": "pillow", "version": "1.0", "vulns": [], **facts}


SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI"}
VULNERABILITY = {"id": "PYSEC-1", "fix_versions": ["1.1"]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([package()], 0, "none of 1 packages"),
        ([package(vulns=[VULNERABILITY])], VULNERABLE, "pillow 1.0 has PYSEC-1, fixed in 1.1"),
        ([package(vulns=[{**VULNERABILITY, "fix_versions": []}])], VULNERABLE, "no version yet"),
        ([SKIPPED], NOT_CHECKED, "1 of 1 packages were not checked"),
        ([package(), SKIPPED], NOT_CHECKED, "1 of 2 packages were not checked"),
        ([package(vulns=[VULNERABILITY]), SKIPPED], VULNERABLE, "1 of 2 packages were not"),
        ([], NOT_CHECKED, "0 of 0 packages"),
    ],
)
def test_a_package_that_nobody_checked_is_no_clean_result(
    packages: list[dict[str, Any]], code: int, said: str
) -> None:
    found = verdict("lock", {"dependencies": packages})

    assert found.code == code
    assert said in "\n".join(found.lines)
