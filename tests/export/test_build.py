from pathlib import Path

from prompt_serve.bundle import open_bundle
from prompt_serve.training.backbone import Backbone


def test_an_exported_bundle_opens_and_names_its_backbone(
    tiny_bundle: Path, tiny_backbone: Backbone
) -> None:
    bundle = open_bundle(tiny_bundle)

    assert bundle.manifest.backbone == tiny_backbone.ref
    assert bundle.manifest.preprocessing == tiny_backbone.preprocessing
