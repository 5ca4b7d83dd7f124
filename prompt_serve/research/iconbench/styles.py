"""Which emoji sets are drawn from, and what each is for.

A set has one style. The embedded backbone has seen eight of them and never the last three, so a
style is to IconBench what a kind of picture (photograph, sketch) is to ImageNet's variants.
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
# Held out of learning here, though the embedded backbone was made with it.
KNOWN_STYLE = "twemoji"
# The test part. Nothing is ever learned or selected on them, nor was the embedded backbone.
UNSEEN_STYLES = ("emojione", "emojione-v1", "fxemoji")
STYLES = (*TRAIN_STYLES, VAL_STYLE, KNOWN_STYLE, *UNSEEN_STYLES)
# Test sets of their own, each over the classes it has drawings of.
DOMAIN_STYLES = (KNOWN_STYLE, *UNSEEN_STYLES)

# The names of the parts in a manifest.
TRAIN, VAL, KNOWN, TEST = "train", "val", "known", "test"


def part_of(style: str) -> str:
    """The one part that a style belongs to: no style is ever in two."""
    if style in TRAIN_STYLES:
        return TRAIN
    return {VAL_STYLE: VAL, KNOWN_STYLE: KNOWN}.get(style, TEST)
