"""Options for work that runs side by side: in processes of this machine, or on Ray."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from prompt_serve.training.many.processes import Failed

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL, PROCESSES, RAY = "local", "processes", "ray"
_CORES_PER_RUN = 4  # a prompt learns little faster with more


def engine_options(command: Command, *, local: bool) -> Command:
    """Add ``--engine`` and what goes with it.

    Args:
        local: one after the other, in the process of the command, is possible, and the default.
    """
    names = [LOCAL, PROCESSES, RAY] if local else [PROCESSES, RAY]
    first = "local: one run after the other. " if local else ""
    threads, jobs = (
        (
            "as many as --engine local has, OMP_NUM_THREADS or all; the last digits of the results "
            "depend on them",
            "the cores of this machine divided by --threads",
        )
        if local
        else (
            "OMP_NUM_THREADS, else the cores of this machine divided by --jobs, or up to 4 on Ray",
            "one per 4 cores, but 2 on a small machine; 1 on a GPU",
        )
    )
    for option in (
        click.option(
            "--threads", type=click.IntRange(min=1),
            help=f"Cores per run. [default: {threads}]",
        ),
        click.option(
            "--jobs", type=click.IntRange(min=1),
            help=f"With --engine processes: runs at a time. [default: {jobs}]",
        ),
        click.option(
            "--address", metavar="ADDRESS",
            help="With --engine ray: address of the cluster, auto for the one on this machine, or "
            "ray://HOST:10001. [default: start one on this machine]",
        ),
        click.option(
            "--engine", type=click.Choice(names), default=names[0], show_default=True,
            help=f"Where runs are trained. {first}processes: side by side on this machine. ray: on "
            "a Ray cluster, whose nodes see the same paths.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Choice of the options."""

    name: str
    address: str | None
    jobs: int | None
    threads: int | None
    device: str = "cpu"
    like_local: bool = False  # as many threads as LOCAL has, by which results are rounded

    @classmethod
    def of(cls, options: dict[str, Any], *, like_local: bool = False) -> "Engine":
        """Take the choice out of the options of a command.

        Args:
            options: of the command.
            like_local: runs must end with the numbers that LOCAL gives.

        Raises:
            click.UsageError: options of different engines.
        """
        names = ("address", "jobs", "threads")
        engine = cls(
            name=options.pop("engine"),
            device=options["device"],
            like_local=like_local,
            **{name: options.pop(name) for name in names},
        )
        if engine.address is not None and engine.name != RAY:
            raise click.UsageError("--address needs --engine ray.")
        if engine.jobs is not None and engine.name != PROCESSES:
            raise click.UsageError("--jobs needs --engine processes.")
        if engine.threads is not None and engine.name == LOCAL:
            raise click.UsageError("--threads needs --engine processes or ray.")
        return engine

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> "Iterator[tuple[int, Result | Failed]]":
        """Yield the index and the outcome of each call, as they finish.

        Args:
            function: of a module, so that another process can import it.
            items: can be pickled.
        """
        if not items:
            return
        if self.name == RAY:
            from prompt_serve.ray import cluster, map_on_ray

            with cluster(self.address):
                yield from map_on_ray(
                    function,
                    items,
                    cores=self._cores_on_ray(),
                    gpus=1 if self.device.startswith("cuda") else 0,
                )
        else:
            from prompt_serve.training.many.processes import map_in_processes

            at_once, threads = self._shares()
            yield from map_in_processes(function, items, at_once=at_once, threads=threads)

    def _shares(self) -> tuple[int, int | None]:
        """Return the number of processes at a time, and the threads of each; None for all.

        They do not depend on what is left to do: numbers are rounded as the threads divide them.
        """
        from prompt_serve.engines.onnx_session import available_cores

        cores, threads = available_cores(), self.threads or _threads_of_environment()
        if self.like_local:
            jobs = self.jobs or max(1, cores // (threads or cores))
            if jobs == 1 and self.jobs is None:
                click.echo(
                    "Note: one part at a time, with the threads that --engine local has. Set "
                    "OMP_NUM_THREADS or --threads to fewer; the last digits depend on them.",
                    err=True,
                )
            return jobs, threads
        usual = 1 if _on_gpu(self.device) else max(min(2, cores), cores // _CORES_PER_RUN)
        jobs = self.jobs or usual
        return jobs, threads or max(1, cores // jobs)

    def _cores_on_ray(self) -> int | None:
        """Return the cores of a run; None for Ray's usual ones."""
        threads = self.threads or _threads_of_environment()
        if threads or not self.like_local:
            return threads
        import torch

        return torch.get_num_threads()


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()


def _threads_of_environment() -> int | None:
    from prompt_serve.training.many.processes import THREADS_VARIABLE

    value = os.environ.get(THREADS_VARIABLE, "")
    return int(value) if value.isdecimal() and int(value) else None
