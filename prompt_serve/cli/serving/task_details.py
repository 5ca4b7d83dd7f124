"""Text of ``prompt-serve tasks show``."""

import click

from prompt_serve.cli.facts import print_fields, to_the_second
from prompt_serve.cli.learning.inspect_metrics import metric_lines
from prompt_serve.errors import counted
from prompt_serve.schemas import TaskInfo

CLASSES_SHOWN = 12


def print_task(task: TaskInfo) -> None:
    """Print what a task is, and what was measured when it was learned."""
    shown = ", ".join(task.class_names[:CLASSES_SHOWN])
    more = task.n_classes - CLASSES_SHOWN
    rest = f", ... and {more:,} more" if more > 0 else ""
    learned = ", ".join(f"{branch} {encoding}" for branch, encoding in task.encodings.items())
    thresholds = task.thresholds or [0.0]
    print_fields(
        {
            "name": task.name,
            "version": task.version,
            "updated": to_the_second(task.updated),
            "method": task.method,
            "backbone": task.backbone,
            "servable": "" if task.servable else "no: learned on another backbone",
            "classes": f"{task.n_classes:,}: {shown}{rest}",
            "templates": ", ".join(map(repr, task.templates)),
            "learned": f"{counted(task.learned_numbers, 'number')} ({learned})" if learned else "",
            "payload": counted(task.payload_bytes, "byte"),
            "file": counted(task.size_bytes, "byte"),
            "temperature": f"{task.temperature:.4g}",
            "unknown below": f"{task.unknown_below:.4g}" if task.unknown_below else "",
            "unlike below": "" if task.unlike_below is None else f"{task.unlike_below:.4g}",
            "labels": f"independent, each from a probability of {min(thresholds):.2f} to "
            f"{max(thresholds):.2f} on"
            if task.multi_label
            else "",
            "tags": " ".join(task.tags),
            "pinned": "yes" if task.pinned else "",
        }
    )
    measured, _ = metric_lines(task.metrics, task.class_names)
    if measured:
        click.echo("\n".join(["metrics", *measured]))
