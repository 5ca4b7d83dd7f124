"""Processor, memory, GPUs and the execution providers of ONNX Runtime."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from prompt_serve.cli.doctor.findings import Checked

# Instruction sets that the kernels of ONNX Runtime and PyTorch choose by.
FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_CUDA = "CUDAExecutionProvider"
_NVIDIA_SMI_TIMEOUT_S = 10.0


def check_machine() -> Checked:
    """Return the processor, memory, GPUs and execution providers."""
    gpus = _gpus()
    providers, problems = _providers()
    notes = []
    if gpus and providers and _CUDA not in providers:
        notes.append(
            "There is a GPU, but this onnxruntime cannot use CUDA: pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu."
        )
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "cpu_quota": _cpu_quota(),
        "cpu_features": _cpu_features(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus,
        "execution_providers": providers,
    }
    return Checked(facts=facts, problems=problems, notes=notes)


def _usable_cores() -> int | None:
    """Return the cores that this process may use (its CPU set)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Return the cores' worth of time that a container may use; None if it is not limited."""
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max", or no such file
        return None


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _processor() -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    known = set(listed[1].split()) if listed else set()
    return [name for name in FEATURES if name in known]


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 (a fixed command)
            [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _providers() -> tuple[list[str], list[str]]:
    """Return the execution providers, and a problem if ONNX Runtime cannot be imported."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return [], []  # not installed
    except Exception as error:  # a library that is missing or does not fit
        return [], [f"onnxruntime cannot be imported: {error}. Install it again."]
    return list(onnxruntime.get_available_providers()), []
