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

Import from the module that owns a name, for example ``from prompt_serve.client import Client``.
Nothing is re-exported here, so importing one part never pulls in the dependencies of another.
"""

__version__ = "0.1.0"
