"""The page as one HTML file: no scripts, no network, no other files."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from prompt_serve import __version__
from prompt_serve.evaluation_report.facts import EvaluationFacts
from prompt_serve.evaluation_report.markup import Markup, joined, tag
from prompt_serve.evaluation_report.sections import Section, sections
from prompt_serve.files import atomic_file


def write_evaluation_report(path: Path, facts: EvaluationFacts) -> int:
    """Write the report on a task; equal facts give equal bytes.

    Args:
        path: HTML file; an existing one is replaced.
        facts: task and predictions.

    Returns:
        Size of the file in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    return write_page(path, evaluation_html(facts))


def write_page(path: Path, page: str) -> int:
    """Write a page; return its size in bytes."""
    # Lone surrogates cannot be encoded; the page has replaced them in its text.
    data = page.encode("utf-8", "replace")
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def evaluation_html(facts: EvaluationFacts) -> str:
    """Render the page."""
    return html_page(f"{facts.task}: evaluation", sections(facts))


def html_page(title: str, parts: Sequence[Section]) -> str:
    """Render a page of sections, with links to them at its top."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(base_style() + _file("page.css"))),
    )
    links = (tag("a", part.title, href=f"#{part.anchor}") for part in parts)
    body = tag(
        "body",
        tag(
            "header",
            tag("h1", title),
            tag("nav", *links, aria_label="Sections"),
        ),
        tag("main", *map(_section, parts)),
        tag("footer", f"prompt-serve {__version__}"),
    )
    return joined(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), Markup("\n"))


def base_style() -> str:
    """Return the style sheet that all reports share: text, tables and dark mode."""
    return _file("base.css")


def _section(section: Section) -> Markup:
    anchor = section.anchor
    heading = tag("h2", section.title, id=f"{anchor}-title")
    return tag("section", heading, section.content, id=anchor, aria_labelledby=f"{anchor}-title")


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
