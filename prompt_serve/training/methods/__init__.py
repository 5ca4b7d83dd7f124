"""The methods by name. A new one is a file with a ``METHOD`` and a line in this list."""

from prompt_serve.research import cocoop
from prompt_serve.training.baselines import kgcoop, prograd, promptsrc
from prompt_serve.training.methods import (
    adapt,
    coop,
    dip,
    dip_losses,
    ivlp,
    maple,
    qcoop,
    vpt,
    zero_shot,
)
from prompt_serve.training.methods.base import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        zero_shot.METHOD,
        coop.METHOD,
        dip.METHOD,
        adapt.METHOD,
        cocoop.METHOD,
        kgcoop.METHOD,
        prograd.METHOD,
        promptsrc.METHOD,
        qcoop.METHOD,
        dip_losses.ALG1,
        dip_losses.ALG2,
        vpt.METHOD,
        ivlp.METHOD,
        maple.METHOD,
        maple.DIP_MAPLE,
        maple.QMAPLE,
    )
}
