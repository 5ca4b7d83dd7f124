"""Find the bundle that prompt files were learned on."""

import os
from collections.abc import Mapping

from prompt_serve.bundle import SHIPPED, Bundle, open_bundle, shipped_bundle
from prompt_serve.errors import BackboneUnavailable
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.tasks.admission import backbone_of
from prompt_serve.text_files import expand_user

BUNDLE_VARIABLE = "PROMPT_SERVE_BUNDLE"


def find_bundle(prompts: Mapping[str, Prompt], bundle: str | os.PathLike[str] | None) -> Bundle:
    """Open the bundle that is named, that of the environment, or the shipped one that fits.

    Args:
        prompts: at least one, by name.
        bundle: folder, or the name of a shipped bundle; None: ``PROMPT_SERVE_BUNDLE``, else the
            shipped one that the prompts were learned on.

    Raises:
        BundleInvalid: the named folder has no bundle.
        BackboneUnavailable: none was named, and the prompts were not learned on a shipped one.
    """
    named = os.fspath(bundle) if bundle is not None else os.environ.get(BUNDLE_VARIABLE)
    if named:
        return open_bundle(shipped_bundle(named) if named in SHIPPED else expand_user(named))
    name, prompt = next(iter(prompts.items()))
    for shipped in SHIPPED:
        opened = open_bundle(shipped_bundle(shipped))
        if backbone_of(prompt, opened).fingerprint == opened.manifest.backbone.fingerprint:
            return opened
    raise BackboneUnavailable(
        f"Prompt {name!r} was learned on {prompt.backbone.id!r}, which does not come with the "
        f"package ({', '.join(SHIPPED)} do). Name the folder of its bundle (bundle=..., --bundle "
        f"or {BUNDLE_VARIABLE}), or make one: prompt-serve export {prompt.backbone.id} -o FOLDER"
    )
