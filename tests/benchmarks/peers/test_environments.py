"""An environment is made once for its packages, and says why if it cannot be made."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from benchmarks.peers.environments import NotInstalled, environment, is_linked
from benchmarks.peers.peer import versions


@pytest.mark.parametrize(
    ("name", "linked"),
    [
        ("torch", True),
        ("torch-2.14.1.dist-info", True),
        ("torchvision.libs", True),
        ("nvidia", True),
        ("nvidia_cublas_cu13-1.dist-info", True),
        ("nvidia_ml_py-13.0.dist-info", False),
        ("nvidia-ml-py-13.0.dist-info", False),
        ("torchaudio", False),
        ("open_clip_torch-3.3.0.dist-info", False),
        ("numpy", False),
    ],
)
def test_torch_and_what_it_loads_are_linked(name: str, linked: bool) -> None:
    assert is_linked(name) is linked


def wheel(folder: Path, version: str) -> str:
    """Write the wheel of a package with one empty module; return its path."""
    path = folder / f"small-{version}-py3-none-any.whl"
    facts = f"small-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("small.py", "")
        name = f"Name: small\nVersion: {version}\n"
        file.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\n{name}")
        tag = "Root-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{facts}/WHEEL", f"Wheel-Version: 1.0\n{tag}")
        file.writestr(f"{facts}/RECORD", "")
    return str(path)


@pytest.mark.long
def test_an_environment_is_made_anew_for_other_packages_only(tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    one, two = (wheel(tmp_path, version) for version in ("1.0", "2.0"))

    python = environment(folder, [one])
    assert versions(python, "small") == "small 1.0"
    stays = folder / "stays"
    stays.touch()
    environment(folder, [one])
    assert stays.exists()

    environment(folder, [two])
    assert versions(python, "small") == "small 2.0"
    assert not stays.exists()
    done = subprocess.run([str(python), "-c", "import small"], check=False)
    assert done.returncode == 0


@pytest.mark.long
def test_packages_that_are_missing_are_the_reason(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing-1.0-py3-none-any.whl")

    for _ in range(2):  # it is not taken for finished the second time
        with pytest.raises(NotInstalled, match=r"^ERROR: .*missing-1\.0"):
            environment(tmp_path / "environment", [missing])
