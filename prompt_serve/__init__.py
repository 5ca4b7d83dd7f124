"""Learn compact prompts for a frozen CLIP, export them to ONNX, and serve thousands of them.

A *task* is a file of a few kilobytes, learned from a folder of images. One service answers for any
number of tasks over one shared image encoder; a new task is uploaded while the service runs.

    prompts/     prompt file -> class features
    training/    image folder -> prompt file
    export/      PyTorch backbone -> ONNX bundle
    service/     bundle + prompt files -> predictions over HTTP (BentoML)
    client/      Python client of the service
    research/    the papers' benchmarks and reports; never imported by the product
    cli/         ``prompt-serve``

    offline/     prompt file + bundle -> predictions in this process: ``prompt_serve.load``

Import from the module that owns a name, for example ``from prompt_serve.client import Client``.
Nothing is re-exported here, so importing one part never pulls in the dependencies of another.
``load`` imports what it needs when it is called.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_serve.offline.model import Model, PathLike, Prompts

__version__ = "0.1.0"


def load(
    prompts: "Prompts",
    *,
    bundle: "PathLike | None" = None,
    device: str = "cpu",
    threads: int = 0,
) -> "Model":
    """Load prompt files over one bundle, to predict in this process; needs neither torch nor a
    service.

        model = prompt_serve.load("pets.safetensors")
        model.predict("cat.jpg").class_name

    Args:
        prompts: prompt file, several, or a mapping of names to files; by default a prompt is named
            after its file.
        bundle: folder of an exported backbone, or ``embedded`` or ``embedded-vit``; None:
            ``PROMPT_SERVE_BUNDLE``, else the shipped one that the prompts were learned on.
        device: cpu, cuda or cuda:N.
        threads: threads of the image encoder on a CPU; 0: one per core.

    Raises:
        PromptError: a file is no prompt file, or does not fit the bundle.
        BundleInvalid, BackboneUnavailable: there is no bundle for the prompts.
        ProviderUnavailable: CUDA was requested and does not run.
    """
    from prompt_serve.offline.model import load_model

    return load_model(prompts, bundle=bundle, device=device, threads=threads)
