"""Settings, home folder, bundles and database of the service on this machine."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.cli.doctor.findings import Checked
from prompt_serve.errors import BundleInvalid, ConfigInvalid, PromptServeError
from prompt_serve.files import check_writable_folder

if TYPE_CHECKING:
    from prompt_serve.service.settings import Settings

_LOW_DISK_BYTES = 200 * 2**20


def check_settings() -> "tuple[Checked, Settings | None]":
    """Return the variables of prompt-serve, secrets hidden, and the settings if they are valid."""
    from prompt_serve.service.env_files import PREFIX
    from prompt_serve.service.observability.logs import redacted
    from prompt_serve.service.settings import Settings

    shown = {
        name: "***" if "KEY" in name else redacted(value)
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIX)
    }
    try:
        return Checked(facts={"variables": shown}), Settings.from_environment()
    except ConfigInvalid as error:
        return Checked(facts={"variables": shown}, problems=list(error.faults)), None


def check_home(settings: "Settings") -> Checked:
    """Check that the home folder of the service can be written to."""
    home = settings.home_path
    problems = []
    try:
        check_writable_folder(home)
    except OSError as error:
        problems.append(
            f"The home folder {home} cannot be written: {error.strerror or error}. "
            f"Choose another one with PROMPT_SERVE_HOME."
        )
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < _LOW_DISK_BYTES:
        problems.append(
            f"The disk of {home} has only {free / 2**20:.0f} MiB left. Free some space, or choose "
            f"another folder with PROMPT_SERVE_HOME."
        )
    facts = {"folder": str(home), "exists": home.is_dir(), "free_bytes": free}
    return Checked(facts=facts, problems=problems)


def check_bundles(settings: "Settings") -> Checked:
    """Check the bundle to serve, every file of it; list those that are shipped or at home."""
    from prompt_serve.bundle import MANIFEST, SHIPPED, shipped_bundle

    served = settings.bundle_path
    home = settings.home_path
    manifests = sorted({*home.glob(f"*/{MANIFEST}"), *home.glob(f"bundles/*/{MANIFEST}")})
    others = [*map(shipped_bundle, SHIPPED), *(manifest.parent for manifest in manifests)]
    paths = dict.fromkeys([served, *others])
    bundles = [_bundle(path, served=path == served) for path in paths]
    problems = [bundle["fault"] for bundle in bundles if bundle["served"] and bundle["fault"]]
    notes = [bundle["fault"] for bundle in bundles if not bundle["served"] and bundle["fault"]]
    return Checked(facts={"bundles": bundles}, problems=problems, notes=notes)


def _bundle(path: Path, *, served: bool) -> dict[str, Any]:
    from prompt_serve.bundle import open_bundle

    facts: dict[str, Any] = {"folder": str(path), "served": served, "fault": None}
    try:
        manifest = open_bundle(path, verify=served).manifest
    except BundleInvalid as error:
        return {**facts, "fault": error.message}
    return {
        **facts,
        "backbone": manifest.backbone.id,
        "precision": manifest.precision,
        "fingerprint": manifest.backbone.fingerprint,
    }


def check_device(settings: "Settings") -> Checked:
    """Check the engine and, if it is requested, CUDA, as a start of the service does.

    Nothing is measured.
    """
    from prompt_serve.bundle import open_bundle
    from prompt_serve.engines import openvino_images
    from prompt_serve.engines.choice import check_engine
    from prompt_serve.service import preflight

    facts: dict[str, Any] = {
        "requested": settings.device,
        "engine": settings.engine,
        "engines": ["onnxruntime", *(["openvino"] if openvino_images.is_installed() else [])],
    }
    try:
        bundle = open_bundle(settings.bundle_path, verify=False)
        check_engine(bundle, settings.engine_name, cuda_device=settings.cuda_device)
        if settings.cuda_device is not None:
            preflight.check(settings)
    except BundleInvalid:
        return Checked(facts=facts)  # reported with the bundles
    except PromptServeError as error:
        return Checked(facts=facts, problems=[error.message])
    return Checked(facts=facts)


def check_database(settings: "Settings") -> Checked:
    """Look into the database; nothing is created or upgraded."""
    from prompt_serve.service.storage.migrations import HEAD
    from prompt_serve.service.storage.upkeep.inspection import database_state

    try:
        state = database_state(settings.database)
    except PromptServeError as error:
        way_out = "PROMPT_SERVE_HOME (a folder) or PROMPT_SERVE_DATABASE_URL chooses another one."
        return Checked(facts={"state": "unreadable"}, problems=[f"{error.message} {way_out}"])
    facts: Mapping[str, Any] = asdict(state)
    if state.state == "newer":
        problem = (
            f"The tables of {state.url} have version {state.tables}; this prompt-serve supports "
            f"versions up to {HEAD}. Install the prompt-serve that made them, or a newer one."
        )
        return Checked(facts=dict(facts), problems=[problem])
    notes = []
    if state.state == "older":
        notes.append(f"The next start upgrades the tables from {state.tables} to {HEAD}.")
    return Checked(facts=dict(facts), notes=notes)
