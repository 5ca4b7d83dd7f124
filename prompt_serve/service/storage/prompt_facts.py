"""Facts about a prompt that the details of a task show.

They are stored with the prompt file, so that nobody parses it again to describe it.
"""

import json

from prompt_serve.prompts.encodings import describe
from prompt_serve.prompts.prompt_file import Prompt, thresholds_of


def facts_of(prompt: Prompt) -> str:
    """Return the facts about a prompt, as JSON."""
    facts = {
        "class_names": list(prompt.class_names),
        "templates": list(prompt.templates),
        "class_position": prompt.class_position,
        "encodings": {b: describe(e) for b, e in prompt.encodings.items()},
        "temperature": prompt.temperature,
        "unknown_below": prompt.unknown_below,
        "unlike_below": None if prompt.sketch is None else prompt.unlike_below,
        "multi_label": prompt.multi_label,
        "thresholds": thresholds_of(prompt),
        "learned_numbers": prompt.learned_numbers,
        "payload_bytes": prompt.payload_bytes,
        "metrics": dict(prompt.metrics),
    }
    return json.dumps(facts, separators=(",", ":"))
