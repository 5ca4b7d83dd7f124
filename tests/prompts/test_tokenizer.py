import html
import random
from pathlib import Path

import ftfy
import pytest
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from prompt_serve.prompts.tokenizer import Tokenizer, clean

ODD = (
    "",
    "   ",
    "café crème brûlée",
    "Bücherregal",
    "naïve façade",
    "ÅNGSTRÖM",
    "İstanbul",
    "straße",
    "O'Neill's sofa",
    "they'll've don't I'm we're he'd",
    "'s 't ''",
    "rock & roll",
    "rock &amp; roll",
    "rock &amp;amp; roll &lt;b&gt;",
    "schÃ¶n",  # mojibake, mended by ftfy
    "“curly” quotes — and dashes…",
    "1984 Toyota MR2",
    "Boeing 737-800",
    "3.14159 × 10²",
    "½ cup",
    "☂ umbrella",
    "👩‍🚀 astronaut",
    "🇩🇪 flag",
    "日本語 の 名前",
    "한국어",
    "עברית",
    "हिन्दी",
    "a\tb\nc\u00a0d\u3000e",
    "snake_case_name",
    "C++/C#",
    "a.b,c;d:e!f?",
    "!!!???...",
    "<start_of_text> and <end_of_text>",
    "x" * 300,
    "\u200bzero\u200bwidth",
    "e\u0301 combining",
)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.from_merges(Path(default_bpe()))


@pytest.fixture(scope="module")
def theirs() -> SimpleTokenizer:
    return SimpleTokenizer()


def sentences() -> list[str]:
    templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    named = [
        templates[index % len(templates)].replace("{}", name)
        for index, name in enumerate(IMAGENET_CLASSNAMES)
    ]
    return [*IMAGENET_CLASSNAMES, *named, *templates, *ODD]


def test_ids_are_those_of_open_clip(ours: Tokenizer, theirs: SimpleTokenizer) -> None:
    texts = sentences()

    for text, ids in zip(texts, ours.encode_many(texts), strict=True):
        assert ids == theirs.encode(theirs.clean_fn(text)), repr(text)


def test_one_text_is_encoded_as_among_many(ours: Tokenizer) -> None:
    assert [ours.encode(text) for text in ODD] == ours.encode_many(list(ODD))


def test_special_ids_and_size_are_those_of_open_clip(
    ours: Tokenizer, theirs: SimpleTokenizer
) -> None:
    assert (ours.start_id, ours.end_id) == (theirs.sot_token_id, theirs.eot_token_id)
    assert ours.end_id + 1 == theirs.vocab_size


def test_the_bundles_json_gives_the_same_ids(ours: Tokenizer, tiny_bundle: Path) -> None:
    texts = sentences()

    assert Tokenizer.from_json(tiny_bundle / "tokenizer.json").encode_many(
        texts
    ) == ours.encode_many(texts)


def test_plain_texts_are_cleaned_as_all_others() -> None:
    rng = random.Random(0)
    plain = "".join(chr(code) for code in range(32, 127))
    texts = ["".join(rng.choices(plain, k=rng.randrange(1, 40))) for _ in range(2_000)]
    for text in [*texts, "  A  b ", "&amp;amp;", "a&lt", "\x7f", "a\x1b[1mb", "\ta\r\nb"]:
        fixed = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean(text) == " ".join(fixed.split()).lower()
