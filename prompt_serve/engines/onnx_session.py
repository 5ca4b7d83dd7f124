"""Sessions of ONNX Runtime that run on the requested execution provider, or not at all."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from prompt_serve.engines.ort_placement import RECORD_ASSIGNMENT, nodes_on_other_providers
from prompt_serve.errors import BundleInvalid, PromptServeError


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Execution provider to run on.

    Args:
        name: ONNX Runtime's name of it.
        options: its options.
        rest: provider of the nodes that this one does not take; None: none may be left over.
        unavailable: makes the error of a provider that does not run, from the reason; None where it
            always runs, so that only the graph can be at fault.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rest: "Provider | None" = None
    unavailable: Callable[[str], PromptServeError] | None = None

    @property
    def all(self) -> "tuple[Provider, ...]":
        """This provider, and those of the rest."""
        return (self,) if self.rest is None else (self, *self.rest.all)


CPU = Provider(name="CPUExecutionProvider")


def open_session(path: Path, provider: Provider, *, threads: int) -> ort.InferenceSession:
    """Open a graph.

    Args:
        path: the graph.
        provider: runs all its matrix products.
        threads: number of threads of the CPU kernels.

    Raises:
        ProviderUnavailable: the provider does not run. ONNX Runtime would fall back to the CPU
            silently.
        BundleInvalid: the graph cannot be loaded.
    """
    options = _session_options(threads)
    providers = [(one.name, dict(one.options)) for one in provider.all]
    try:
        session = ort.InferenceSession(str(path), sess_options=options, providers=providers)
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        raise _failure(provider, path, str(error)) from error
    # Neither get_available_providers() nor disable_fallback() prevents a silent fallback.
    active = session.get_providers()[0]
    if active != provider.name:
        raise _failure(provider, path, f"the session runs on {active}")
    if misplaced := nodes_on_other_providers(session, *(one.name for one in provider.all)):
        nodes = ", ".join(f"{count} {op}" for op, count in misplaced.most_common())
        raise _failure(
            provider,
            path,
            f"it leaves matrix products in {path.name} to another provider ({nodes}); an "
            f"int8 bundle is for CPUs, export one with --precision fp16",
        )
    return session


def available_cores() -> int:
    """Return the cores this process may use (a container's CPU set counts, its quota does not)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads may spin between two operators, which is fast, but not between two batches: they would
    # take the cores from the threads that decode the next images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Work in small blocks: a thread that briefly loses its core to a decoding thread then does not
    # hold up all others with a large block.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    options.log_severity_level = 3
    return options


def _failure(provider: Provider, path: Path, reason: str) -> PromptServeError:
    if provider.unavailable is not None:
        return provider.unavailable(reason)
    one_line = " ".join(reason.split())
    return BundleInvalid(f"{path} cannot be loaded: {one_line}", path=str(path))
