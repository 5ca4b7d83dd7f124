from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import default_bpe

from prompt_serve.errors import PromptFileInvalid, PromptTooLong
from prompt_serve.prompts.sequences import PAD_ID, SequencePlan, assemble, plan_sequences
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.types import ClassPosition


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_merges(Path(default_bpe()))


def rows(plan: SequencePlan) -> list[list[int]]:
    """What stands in each sequence, from SOS to EOT."""
    return [
        [*plan.prefix.tolist(), *suffix[: eot + 1].tolist()]
        for suffix, eot in zip(plan.suffix, plan.eot, strict=True)
    ]


def test_words_only_are_the_tokens_of_the_sentences(tokenizer: Tokenizer) -> None:
    plan = plan_sequences(
        tokenizer, ["cat", "red_winged_blackbird"], "a photo of a {}.", context_length=77
    )

    assert rows(plan) == [
        [tokenizer.start_id, *tokenizer.encode(f"a photo of a {name}."), tokenizer.end_id]
        for name in ("cat", "red winged blackbird")
    ]
    assert plan.prefix.tolist() == [tokenizer.start_id, *tokenizer.encode("a photo of a")]
    assert plan.suffix.shape[1] == len(tokenizer.encode("red winged blackbird.")) + 1


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", ["sos", 0, 1, 2, 3, "cat", ".", "eot"]),
        ("middle", ["sos", 0, 1, "cat", 2, 3, ".", "eot"]),
        ("front", ["sos", "cat", 0, 1, 2, 3, ".", "eot"]),
    ],
)
def test_the_name_stands_where_it_was_asked_for(
    tokenizer: Tokenizer, position: ClassPosition, expected: list[str | int]
) -> None:
    plan = plan_sequences(
        tokenizer,
        ["cat"],
        "a photo of a {}.",
        context_length=77,
        n_ctx=4,
        class_position=position,
    )

    ids = {
        "sos": tokenizer.start_id,
        "eot": tokenizer.end_id,
        "cat": tokenizer.encode("cat")[0],
        ".": tokenizer.encode(".")[0],
    }
    assert rows(plan) == [[ids[e] if isinstance(e, str) else ~e for e in expected]]


def test_a_class_specific_context_is_not_shared(tokenizer: Tokenizer) -> None:
    plan = plan_sequences(
        tokenizer, ["cat", "dog"], "X X {}.", context_length=77, n_ctx=2, class_specific=True
    )

    assert plan.prefix.tolist() == [tokenizer.start_id]
    assert plan.suffix[:, :2].tolist() == [[~0, ~1], [~0, ~1]]


def test_one_class_leaves_eot_to_the_suffix(tokenizer: Tokenizer) -> None:
    plan = plan_sequences(tokenizer, ["cat"], "{}", context_length=77)

    assert plan.suffix.tolist() == [[tokenizer.end_id]]
    assert plan.eot.tolist() == [0]


def test_a_tower_that_is_not_causal_gets_padded_sequences(tokenizer: Tokenizer) -> None:
    plan = plan_sequences(tokenizer, ["cat", "a b c"], "{}.", context_length=20, causal=False)

    assert len(plan.prefix) + plan.suffix.shape[1] == 20
    assert plan.suffix[0, plan.eot[0] + 1 :].tolist() == [PAD_ID] * (19 - len(plan.prefix) - 2)


def test_vectors_are_token_embeddings_and_context(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    embedding = rng.standard_normal((tokenizer.end_id + 1, 3)).astype(np.float32)
    context = rng.standard_normal((2, 3)).astype(np.float32)
    plan = plan_sequences(tokenizer, ["cat", "dog"], "X X {}.", context_length=77, n_ctx=2)

    sequences = assemble(plan, embedding, context)

    np.testing.assert_array_equal(
        sequences.prefix, [embedding[tokenizer.start_id], context[0], context[1]]
    )
    for row, name in zip(sequences.suffix, ("cat", "dog"), strict=True):
        ids = [*tokenizer.encode(f"{name}."), tokenizer.end_id]
        np.testing.assert_array_equal(row, embedding[ids])


def test_every_class_gets_its_own_context(tokenizer: Tokenizer, rng: np.random.Generator) -> None:
    embedding = rng.standard_normal((tokenizer.end_id + 1, 3)).astype(np.float32)
    context = rng.standard_normal((2, 2, 3)).astype(np.float32)
    plan = plan_sequences(
        tokenizer,
        ["cat", "dog"],
        "X X {}.",
        context_length=77,
        n_ctx=2,
        class_specific=True,
        class_position="front",
    )

    suffix = assemble(plan, embedding, context).suffix

    np.testing.assert_array_equal(suffix[:, 1:3], context)


def test_all_names_that_are_too_long_are_listed(tokenizer: Tokenizer) -> None:
    long, longer = " ".join(["word"] * 20), " ".join(["word"] * 21)

    with pytest.raises(PromptTooLong, match="2 class names too long for the 20 tokens") as caught:
        plan_sequences(tokenizer, ["cat", long, longer], "{}.", context_length=22)

    assert caught.value.faults == (
        f"{long!r}: 21 tokens with its template",
        f"{longer!r}: 22 tokens with its template",
    )


def test_the_longest_name_that_fits_is_taken(tokenizer: Tokenizer) -> None:
    plan = plan_sequences(tokenizer, [" ".join(["word"] * 19)], "{}.", context_length=22)

    assert len(rows(plan)[0]) == 22


def test_a_template_glued_to_the_name_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptFileInvalid, match=r"run into 'bird'.*Put a space before"):
        plan_sequences(tokenizer, ["bird"], "black{}.", context_length=77, n_ctx=1)


def test_fewer_words_than_vectors_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptFileInvalid, match=r"has 4 tokens.*has 5.*'X X X X X'"):
        plan_sequences(tokenizer, ["cat"], "a photo of a {}.", context_length=77, n_ctx=5)


@pytest.mark.parametrize("position", ["front", "middle"])
def test_words_behind_the_vectors_want_the_name_at_the_end(
    tokenizer: Tokenizer, position: ClassPosition
) -> None:
    with pytest.raises(PromptFileInvalid, match=r"has 4 tokens.*has 3.*'X X X'"):
        plan_sequences(
            tokenizer,
            ["cat"],
            "a photo of a {}.",
            context_length=77,
            n_ctx=3,
            class_position=position,
        )


def test_words_behind_the_vectors_stay(tokenizer: Tokenizer) -> None:
    """MaPLe: two vectors, then "of a"."""
    plan = plan_sequences(tokenizer, ["cat", "dog"], "a photo of a {}.", context_length=77, n_ctx=2)

    assert rows(plan) == [
        [tokenizer.start_id, ~0, ~1, *tokenizer.encode(f"of a {name}."), tokenizer.end_id]
        for name in ("cat", "dog")
    ]
    assert plan.prefix.tolist() == [tokenizer.start_id, ~0, ~1, *tokenizer.encode("of a")]
