"""docs/datasets.md says of each dataset what the specs say."""

import re
from pathlib import Path

import pytest

from prompt_serve.research.datasets.spec import imagenet_domains, paper_datasets

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
ALL = {**paper_datasets(), **imagenet_domains()}


@pytest.mark.parametrize("name", ALL)
def test_the_table_is_that_of_the_specs(name: str) -> None:
    spec = ALL[name]
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    _, _, folders, holds, classes, sizes, _ = (cell.strip() for cell in row.split("|"))
    assert folders == ", ".join(f"`{folder}`" for folder in spec.folders)
    for expected in (*spec.images[:1], *spec.holds, *spec.needs[:1]):
        assert expected in holds
    assert classes == f"{spec.classes:,}"
    assert sizes == " / ".join(
        f"{spec.sizes[part]:,}" if part in spec.sizes else "-" for part in ("train", "val", "test")
    )


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    values: dict[str, object] = {}
    exec(example.replace("/data", str(tmp_path)), values)
    assert list(values["papers"].missing) == list(paper_datasets())  # type: ignore[attr-defined]  # a Suite
