"""Mutation testing of the core: ``python -m tools.mutation [--survivors] [MODULE ...]``.

mutmut changes one expression at a time and runs the tests that call the changed function, quick
ones first; a change that no test notices has survived. ``equivalent_mutants.toml`` lists changes
that cannot be noticed, with the reason. Exit code 1 if fewer than ``GOAL`` of the others are
killed. ``--survivors`` tries the changes that survived the last run again, and those of functions
that are new since, with the tests as they are now. With ``--sample``, N changes per module are
drawn, always the same ones.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutation"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
GOAL = 0.9
MODULES: Mapping[str, Sequence[str]] = {
    "prompt_serve/scoring.py": (
        "tests/test_scoring.py",
        "tests/docs/test_prompt_file_example.py",
        "tests/closed_form/test_sketch.py",
    ),
    "prompt_serve/prompts/folding.py": ("tests/prompts/test_folding.py",),
    "prompt_serve/prompts/prompt_file.py": (
        "tests/prompts/test_prompt_limits.py",
        "tests/prompts/test_prompt_file.py",
        "tests/docs/test_prompt_file_example.py",
        "tests/prompts/test_wrong_files.py",
    ),
    "prompt_serve/service/inference/batcher.py": (
        "tests/service/inference/test_batcher_failures.py",
        "tests/service/inference/test_batcher_passes.py",
        "tests/service/inference/test_batcher.py",
    ),
    "prompt_serve/service/storage/registry.py": (
        "tests/service/storage/test_registry_records.py",
        "tests/service/storage/test_registry_callers.py",
        "tests/service/storage/test_registry.py",
    ),
    "prompt_serve/service/storage/visibility.py": (
        "tests/service/storage/test_registry_callers.py",
    ),
    "prompt_serve/service/byte_budget.py": ("tests/service/test_byte_budget.py",),
    **{
        f"prompt_serve/service/scheduling/{name}.py": (f"tests/service/scheduling/test_{name}.py",)
        for name in ("deadline", "fair_pool", "loop_results", "shared_read", "turn_lock", "turns")
    },
}
_COPIED = ("prompt_serve", "tests", "docs", "README.md", "CHANGELOG.md", "pyproject.toml")
_IGNORED = shutil.ignore_patterns("__pycache__", "node_modules")
# Of hanging mutants: seconds beside the time of the tests, and how many times both. A machine that
# is busier than while the tests were timed must not count as a hanging mutant.
_TIMEOUT = {"timeout_constant": 6.0, "timeout_multiplier": 5.0}
_NOT_RUN = "not checked"
_KILLED = ("killed", "timeout", "caught by type check", "segfault")
_RESULT = re.compile(r"^\s*(\S+__mutmut_\d+): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Survivor:
    """Change that no test noticed: the function, and the lines before and after."""

    function: str
    before: str
    after: str


def run(
    module: str, *, sample: int | None, survivors: bool, children: int
) -> tuple[Counter[str], list[Survivor]]:
    """Mutate one module; return the number of mutants by result, and those that survived."""
    folder = WORK / module.removesuffix(".py").replace("/", ".")
    if survivors:
        _renew(folder, module)
        _make_mutants(folder)
        chosen = [name for name, result in _results(folder).items() if result not in _KILLED]
    else:
        _prepare(folder, module)
        chosen = _drawn(folder, sample) if sample else []
    if chosen or not survivors:
        _mutmut(folder, "run", "--max-children", str(children), *chosen)
    results = {name: result for name, result in _results(folder).items() if result != _NOT_RUN}
    alive = [name for name, result in results.items() if result not in _KILLED]
    return Counter(results.values()), [_survivor(folder, name) for name in alive]


def _results(folder: Path) -> dict[str, str]:
    return dict(_RESULT.findall(_mutmut(folder, "results", "--all", "true")))


def _make_mutants(folder: Path) -> None:
    _mutmut(folder, "run", "no.such.mutant", check=False)  # and runs none


def _drawn(folder: Path, sample: int) -> list[str]:
    """Return the names of some mutants."""
    _make_mutants(folder)
    names = sorted(_results(folder))
    return random.Random(0).sample(names, min(sample, len(names)))


def equivalent() -> dict[tuple[str, str], str]:
    """Return the reasons of equivalent mutants by function and changed line."""
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    return {(one["function"], one["after"]): one["reason"] for one in listed}


def main(modules: Iterable[str], **options: Any) -> int:
    """Run modules as ``run`` does and print the table; return the exit code."""
    known = equivalent()
    failed = False
    print("| module | mutants | killed | equivalent | survived | killed of the others |")
    print("|---|---|---|---|---|---|")
    rest: list[str] = []
    for module in modules:
        counts, survivors = run(module, **options)
        killed = sum(counts[result] for result in _KILLED)
        left = [one for one in survivors if (one.function, one.after) not in known]
        share = killed / max(1, killed + len(left))
        failed |= share < GOAL
        print(
            f"| `{module}` | {counts.total()} | {killed} | {len(survivors) - len(left)} | "
            f"{len(left)} | {100 * share:.1f} % |",
            flush=True,
        )
        rest += [f"{module}: {one.function}\n  - {one.before}\n  + {one.after}" for one in left]
    print("\n".join(rest), file=sys.stderr)
    return int(failed)


def _prepare(folder: Path, module: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=_IGNORED)
        else:
            shutil.copy(source, folder / name)
    _configure(folder, module)


def _renew(folder: Path, module: str) -> None:
    """Take over the code and the tests as they are now, but keep the results of the last run."""
    if not folder.exists():
        raise SystemExit(f"{module} was not run before. Run it without --survivors.")
    for name in ("prompt_serve", "tests"):
        shutil.rmtree(folder / name)
        shutil.copytree(ROOT / name, folder / name, ignore=_IGNORED)
    shutil.rmtree(folder / "mutants" / "tests")
    # Which test calls which function is found out again.
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    _configure(folder, module)


def _configure(folder: Path, module: str) -> None:
    options = ("-p", "no:cacheprovider", "-k", "not postgresql")
    lines = {
        "source_paths": ["prompt_serve"],
        "only_mutate": [module],
        "also_copy": list(_COPIED),
        "pytest_add_cli_args_test_selection": MODULES[module],
        "pytest_add_cli_args": options,
        **{key: (str(value),) for key, value in _TIMEOUT.items()},
    }
    # pyproject.toml of the copy would win over setup.cfg if it had a section for mutmut.
    (folder / "setup.cfg").write_text(
        "[mutmut]\n"
        + "".join(
            f"{key}=\n" + "".join(f"    {v}\n" for v in values) for key, values in lines.items()
        )
    )


def _survivor(folder: Path, name: str) -> Survivor:
    diff = _mutmut(folder, "show", name).splitlines()
    function = name.rpartition("__mutmut_")[0].rpartition(".")[2].removeprefix("x_")
    function = function.removeprefix("xǁ").replace("ǁ", ".")
    return Survivor(function, " / ".join(_lines(diff, "-")), " / ".join(_lines(diff, "+")))


def _lines(diff: Iterable[str], sign: str) -> Iterator[str]:
    return (line[1:].strip() for line in diff if line[:1] == sign and line[:3] != 3 * sign)


def _mutmut(folder: Path, *arguments: str, check: bool = True) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # finding plugins takes longer than a test
    environment.pop("PYTHONPATH", None)  # the copy is tested, not this checkout
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"mutmut failed in {folder}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="paths; all by default")
    parser.add_argument("--sample", type=int, help="mutants per module; all by default")
    parser.add_argument("--survivors", action="store_true", help="those of the last run again")
    # Mutants that hang wait without the CPU.
    parser.add_argument("--children", type=int, default=2 * (os.cpu_count() or 1), help="at once")
    asked = parser.parse_args()
    if unknown := set(asked.modules) - set(MODULES):
        parser.error(f"no tests are listed for {unknown}; expected {', '.join(MODULES)}")
    options = {"sample": asked.sample, "survivors": asked.survivors, "children": asked.children}
    sys.exit(main(asked.modules or MODULES, **options))
