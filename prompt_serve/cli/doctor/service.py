"""The running service: whether it answers, what it serves, whether it wants a key."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import prompt_serve
from prompt_serve.cli.doctor.findings import Checked
from prompt_serve.errors import NotAuthenticated, PromptServeError, ServiceUnreachable

if TYPE_CHECKING:
    from prompt_serve.client import Client

KEY_VARIABLE = "PROMPT_SERVE_API_KEY"


def check_service(url: str, client: "Callable[[str | None], Client]", *, named: bool) -> Checked:
    """Ask the service about itself, first without a key.

    Args:
        url: its address.
        client: makes a client that sends a key; "" for none, None for the one of the user.
        named: the user named the address, so that a service is expected there.
    """
    facts: dict[str, Any] = {"url": url, "reachable": False}
    try:
        try:
            found = _info(client(""))
            facts |= {"reachable": True, "key_required": False}
        except NotAuthenticated:
            facts |= {"reachable": True, "key_required": True}
            found = _info(client(None))
    except NotAuthenticated as error:
        way_out = (
            f"{KEY_VARIABLE} has a key that it does not accept."
            if os.environ.get(KEY_VARIABLE)
            else f"Set {KEY_VARIABLE}; prompt-serve keys create NAME makes one."
        )
        return Checked(facts=facts, problems=[f"{url} wants a key. {error.message} {way_out}"])
    except ServiceUnreachable as error:
        if named:
            return Checked(facts=facts, problems=[error.message])
        note = f"No service runs at {url}. Start one: bentoml serve, or name another with --url."
        return Checked(facts=facts, notes=[note])
    except PromptServeError as error:
        return Checked(facts=facts, problems=[f"{url}: {error.message}"])
    facts |= found
    notes = []
    if found["version"] != prompt_serve.__version__:
        notes.append(
            f"The service has version {found['version']}, this command {prompt_serve.__version__}. "
            f"Upgrade the older one if something is missing."
        )
    return Checked(facts=facts, notes=notes)


def _info(client: "Client") -> dict[str, Any]:
    with client:
        info = client.info()
    return {
        "version": info.version,
        "backbone": info.backbone.id,
        "precision": info.precision,
        "fingerprint": info.backbone.fingerprint,
        "provider": info.provider,
        "engine": None if info.engine is None else info.engine.name,
        "engine_reason": None if info.engine is None else info.engine.reason,
        "tasks": info.tasks,
        "revision": info.revision,
    }
