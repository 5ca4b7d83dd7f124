"""``prompt-serve export``."""

import re
from pathlib import Path

from click.testing import CliRunner

from prompt_serve.bundle import open_bundle
from prompt_serve.cli.main import main


def test_export_prints_its_checks_and_its_folder(exported: tuple[Path, str]) -> None:
    out, printed = exported

    assert open_bundle(out).manifest.backbone.id == "tiny"
    lines = printed.splitlines()
    assert lines[:3] == [
        "exporting the image encoder (fp32)",
        "exporting the image encoder that takes learned vectors",
        "exporting the text encoder",
    ]
    assert any(line.startswith("parity: text_names") for line in lines)
    assert any(line.startswith("image_encoder.onnx") for line in lines)
    assert re.match(r"Exported tiny \(fp32\) to /.*/bundle in ", lines[-1])


def test_an_unknown_backbone_is_one_clear_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", "ViT-B-17/openai", "-o", str(tmp_path / "b")])

    assert result.exit_code == 2
    assert "Error: open_clip has no model 'ViT-B-17'." in result.output
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example_that_names_the_options() -> None:
    result = CliRunner().invoke(main, ["export", "--help"])

    assert result.exit_code == 0
    assert "Example: prompt-serve export embedded -o bundles/embedded" in result.output
    assert "--precision [fp32|int8|bf16|fp16]" in result.output
