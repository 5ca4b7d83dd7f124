"""Styles of IconBench and their parts: train, val, known, test.

Each emoji set has one style. The embedded backbone was pretrained on the first eight and has not
seen the last three, so styles serve as domains, like photographs and sketches for ImageNet.
"""

TRAIN_STYLES = (
    "noto",
    "openmoji",
    "fluent-emoji-flat",
    "fluent-emoji",
    "fluent-emoji-high-contrast",
    "streamline-emojis",
)
VAL_STYLE = "noto-v1"
# Not used for training prompts, but the embedded backbone was pretrained on it.
KNOWN_STYLE = "twemoji"
# The test part. Neither prompts nor the embedded backbone are trained or selected on it.
UNSEEN_STYLES = ("emojione", "emojione-v1", "fxemoji")
STYLES = (*TRAIN_STYLES, VAL_STYLE, KNOWN_STYLE, *UNSEEN_STYLES)
# Domains, each over the classes it has drawings of.
DOMAIN_STYLES = (KNOWN_STYLE, *UNSEEN_STYLES)

# The names of the parts in a manifest.
TRAIN, VAL, KNOWN, TEST = "train", "val", "known", "test"


def part_of(style: str) -> str:
    """Return the part that a style belongs to; every style belongs to exactly one."""
    if style in TRAIN_STYLES:
        return TRAIN
    return {VAL_STYLE: VAL, KNOWN_STYLE: KNOWN}.get(style, TEST)
