"""The methods by name. A new one is a file with a ``METHOD`` and a line in this list."""

from prompt_serve.training.methods import adapt, coop, dip, zero_shot
from prompt_serve.training.methods.base import Method

METHODS: dict[str, Method] = {
    method.name: method for method in (zero_shot.METHOD, coop.METHOD, dip.METHOD, adapt.METHOD)
}
