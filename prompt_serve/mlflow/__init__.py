"""MLflow flavor: prompts and their bundle as an MLflow model, which needs no torch.

    prompt_serve.mlflow.log_model("pets.safetensors", name="pets")
    mlflow.pyfunc.load_model("models:/pets/1").predict(["cat.jpg"])

A model is one folder: the prompt files, and a copy of the bundle unless it comes with the package.
MLflow registers it, serves it and scores with it like any other.
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map

from prompt_serve import __version__
from prompt_serve.bundle import SHIPPED, Bundle, shipped_bundle, text_folder
from prompt_serve.offline.model import Model, PathLike, Prompts, named_prompts
from prompt_serve.offline.model import load_model as load_prompts
from prompt_serve.schemas import DEFAULT_TOP_K

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

FLAVOR = "prompt_serve"
_CONTENT = "content.json"  # names of the prompts, and the bundle
_EXAMPLE_SIDE = 32  # pixels
_CONFIG = {"device": "cpu", "threads": 0}  # what ``load_model(uri, model_config=...)`` may change


def save_model(
    prompt: Prompts,
    path: PathLike,
    *,
    bundle: PathLike | None = None,
    copy_bundle: bool = True,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: Sequence[str] | None = None,
    extra_pip_requirements: Sequence[str] | None = None,
    metadata: dict[str, Any] | None = None,
    mlflow_model: MlflowModel | None = None,
) -> None:
    """Write an MLflow model.

    The prompts are loaded over their bundle first, so that a model that cannot predict is not
    written.

    Args:
        prompt: prompt file, several, or a mapping of names to files.
        path: folder to write; it must not exist.
        bundle: as for ``prompt_serve.load``.
        copy_bundle: False: whoever loads the model has the bundle, in ``PROMPT_SERVE_BUNDLE``.
        signature: of input and output; None: one column of image bytes or paths, and the columns
            of ``predict``.
        input_example: None: a small image.
        pip_requirements: packages to load the model; None: prompt-serve of this version.
        extra_pip_requirements: further packages.
        metadata: free form, kept in the model.
        mlflow_model: given by MLflow.

    Raises:
        ConfigInvalid, PromptError, BundleInvalid, BackboneUnavailable: see ``prompt_serve.load``.
    """
    files = named_prompts(prompt)
    loaded = load_prompts(files, bundle=bundle)
    model = MlflowModel() if mlflow_model is None else mlflow_model
    backbone = loaded.bundle.manifest.backbone
    model.add_flavor(
        FLAVOR,
        prompt_serve_version=__version__,
        prompts={name: task.version for name, task in loaded.tasks},
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
    )
    requirements = [
        *(pip_requirements or [f"prompt-serve[mlflow,serve]=={__version__}"]),
        *(extra_pip_requirements or ()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / "task"
        _write_content(content, files, loaded.bundle, copy_bundle=copy_bundle)
        mlflow.pyfunc.save_model(
            path=str(path),
            loader_module=__name__,
            data_path=str(content),
            mlflow_model=model,
            signature=signature or default_signature(),
            input_example=_example() if input_example is None else input_example,
            pip_requirements=requirements,
            metadata=metadata,
            model_config=dict(_CONFIG),
        )


def log_model(prompt: Prompts, name: str = "model", **options: Any) -> "ModelInfo":
    """Log an MLflow model, in the active run if there is one.

    Args:
        prompt: as for ``save_model``.
        name: of the model.
        options: those of ``save_model``, and of MLflow, such as ``registered_model_name``, ``tags``
            and ``run_id``.
    """
    return MlflowModel.log(
        artifact_path=None, name=name, flavor=sys.modules[__name__], prompt=prompt, **options
    )


def load_model(model_uri: str, *, device: str = "cpu", threads: int = 0) -> Model:
    """Load the prompts of an MLflow model as ``prompt_serve.load`` does.

    Args:
        model_uri: such as ``models:/pets/1``, ``runs:/ID/model``, or a folder.
        device: as for ``prompt_serve.load``.
        threads: as for ``prompt_serve.load``.
    """
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri))
    data = MlflowModel.load(str(folder)).flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.DATA]
    return _load(folder / data, device=device, threads=threads)


def default_signature() -> ModelSignature:
    """Return the signature of a model: one column of images, the columns of ``predict``.

    The type of the column is binary, for paths as well, which MLflow lets through. A server decodes
    base64, so that no request makes it read a file of its machine.
    """
    text, number = DataType.string, DataType.double
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary)]),
        outputs=Schema(
            [
                ColSpec(text, "source"),
                ColSpec(text, "task"),
                ColSpec(text, "class_name", required=False),
                ColSpec(number, "probability", required=False),
                ColSpec(DataType.boolean, "unknown"),
                ColSpec(Array(text), "labels", required=False),
                ColSpec(number, "similarity", required=False),
                ColSpec(text, "version", required=False),
                ColSpec(text, "error", required=False),
                ColSpec(Map(number), "probabilities"),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.long, DEFAULT_TOP_K)]),
    )


class PromptModel:
    """Prompts as MLflow's pyfunc calls them.

    Args:
        model: loaded prompts.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, images: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify images: paths, URLs or the bytes of files, in the first column of a frame.

        Returns:
            One row per image and prompt, as ``prompt_serve.load(...).predict(...).to_pandas()``,
            and ``probabilities`` of the ``top_k`` best classes by name. A bad image is a row with
            an ``error``.
        """
        top_k = (params or {}).get("top_k", DEFAULT_TOP_K)
        found = self.model.predict(images.iloc[:, 0].tolist(), top_k=top_k)
        frame = found.to_pandas()
        frame["probabilities"] = [
            {score.class_name: score.probability for score in row.classes} for row in found.rows
        ]
        return frame


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> PromptModel:
    """Load a model for MLflow."""
    return PromptModel(_load(Path(path), **{**_CONFIG, **(model_config or {})}))


def _write_content(
    folder: Path, files: dict[str, Path], bundle: Bundle, *, copy_bundle: bool
) -> None:
    """Write the prompt files and, unless it comes with the package, the bundle."""
    folder.mkdir()
    stored = {name: f"{number}.safetensors" for number, name in enumerate(files)}
    for name, file in files.items():
        shutil.copy(file, folder / stored[name])
    shipped = {shipped_bundle(name): name for name in SHIPPED}.get(bundle.path)
    if shipped is None and copy_bundle:
        # A bundle may take its text side from one beside it.
        for source in {bundle.path, text_folder(bundle.path, bundle.manifest)}:
            shutil.copytree(source, folder / source.name)
    named = shipped or (bundle.path.name if copy_bundle else None)
    content = {"prompts": stored, "bundle": named, "copied": copy_bundle and shipped is None}
    (folder / _CONTENT).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _load(folder: Path, *, device: str, threads: int) -> Model:
    content = json.loads((folder / _CONTENT).read_text(encoding="utf-8"))
    bundle = folder / content["bundle"] if content["copied"] else content["bundle"]
    prompts = {name: folder / file for name, file in content["prompts"].items()}
    return load_prompts(prompts, bundle=bundle, device=device, threads=threads)


def _example() -> pd.DataFrame:
    """Return one small image."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (_EXAMPLE_SIDE, _EXAMPLE_SIDE), (128, 128, 128)).save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})
