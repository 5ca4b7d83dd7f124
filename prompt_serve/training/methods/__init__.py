"""The methods by name. A new one is a file with a ``METHOD`` and a line in this list.

A method of another package comes from an entry point of the group ``prompt_serve.methods``, with
the method's name and the place of its ``Method``::

    [project.entry-points."prompt_serve.methods"]
    my-method = "my_package.my_method:METHOD"

Methods are imported when they are looked up: the list itself needs no torch.
"""

from typing import TYPE_CHECKING, Any

from prompt_serve.errors import ConfigInvalid, did_you_mean
from prompt_serve.training.methods.registry import MethodRegistry

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method

METHODS = MethodRegistry(
    {
        "zero-shot": "prompt_serve.training.methods.zero_shot:METHOD",
        "class-vectors": "prompt_serve.training.methods.class_vectors:METHOD",
        "coop": "prompt_serve.training.methods.coop:METHOD",
        "dip": "prompt_serve.training.methods.dip:METHOD",
        "adapt": "prompt_serve.training.methods.adapt:METHOD",
        "kgcoop": "prompt_serve.training.baselines.kgcoop:METHOD",
        "prograd": "prompt_serve.training.baselines.prograd:METHOD",
        "promptsrc": "prompt_serve.training.baselines.promptsrc:METHOD",
        "qcoop": "prompt_serve.training.methods.qcoop:METHOD",
        "dip-alg1": "prompt_serve.training.methods.dip_losses:ALG1",
        "dip-alg2": "prompt_serve.training.methods.dip_losses:ALG2",
        "vpt": "prompt_serve.training.methods.vpt:METHOD",
        "ivlp": "prompt_serve.training.methods.ivlp:METHOD",
        "maple": "prompt_serve.training.methods.maple:METHOD",
        "dip-maple": "prompt_serve.training.methods.maple:DIP_MAPLE",
        "qmaple": "prompt_serve.training.methods.maple:QMAPLE",
    },
    group="prompt_serve.methods",
)


def find_method(name: object) -> "Method[Any]":
    """Return the method of that name.

    Raises:
        ConfigInvalid: there is none, or another package's method cannot be loaded.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    raise ConfigInvalid(
        f"method is {name!r}; expected one of {', '.join(map(repr, METHODS))}."
        f"{did_you_mean(str(name), METHODS)}"
    )
