"""From class names, template and context to the sequences that the text tower reads.

A sequence is ``[SOS] [context x M] [class name] [suffix] [EOT]`` (or with the class name in the
middle or in front, CoOp section 3.2). CLIP's text tower is causal, hence two exact savings:

* nothing after EOT can matter, so sequences are cut after the longest EOT instead of being padded
  to 77 tokens;
* what all classes share in front (SOS and, mostly, the context) is the same for all of them, so it
  is kept apart as ``prefix`` and computed once.

A *plan* says what stands where; it holds no vectors. ``assemble`` fills it with numpy vectors, and
training fills the same plan with torch tensors, so that both see the same sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.errors import PromptFileInvalid, PromptTooLong
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.types import ClassPosition, FloatArray, IntArray

PAD_ID = 0  # CLIP pads with token 0; it stands only behind EOT


@dataclass(frozen=True, kw_only=True)
class SequencePlan:
    """What stands at each position: a token id (>= 0), or ``~m`` (< 0) for context vector m."""

    prefix: IntArray  # (P,) shared by all classes; P >= 1, since SOS is always shared
    suffix: IntArray  # (C, S) of each class
    eot: IntArray  # (C,) position of EOT within the suffix


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Inputs of the text graph, without positional embeddings (the graph adds them)."""

    prefix: FloatArray  # (P, D)
    suffix: FloatArray  # (C, S, D)
    eot: IntArray  # (C,)
    # Of prompts that reach into deeper blocks; see ``contexts.BranchContext``. The M vectors of
    # ``deeper`` replace places 1 to M, which lie in the prefix.
    deeper: tuple[FloatArray, ...] = ()
    keys_values: tuple[FloatArray, ...] = ()


def template_ids(tokenizer: Tokenizer, template: str) -> list[int]:
    """Token ids of the template's words before the class name (M of them)."""
    return tokenizer.encode(template.split("{}")[0])


def plan_sequences(
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    template: str,
    *,
    context_length: int,
    n_ctx: int | None = None,
    class_position: ClassPosition = "end",
    class_specific: bool = False,
    causal: bool = True,
) -> SequencePlan:
    """Lay out one sequence a class.

    Args:
        tokenizer: of the backbone.
        class_names: C names; underscores become spaces, as in CoOp.
        template: with ``{}`` for the class name.
        context_length: the longest sequence the text tower takes, in tokens.
        n_ctx: M, the number of learned vectors, which stand in place of the first M tokens of
            the template; None keeps those tokens. With the class name at the end, words of the
            template behind the M vectors stay (MaPLe: two vectors, then "of a").
        class_position: where the class name stands among the learned vectors.
        class_specific: each class has its own context, so it cannot be shared.
        causal: False pads every sequence to ``context_length``, as such towers read all of it.

    Raises:
        PromptFileInvalid: the template has fewer than ``n_ctx`` tokens before the class name, or
            more where the class name does not stand at the end.
        PromptTooLong: some names do not fit; the message lists them.
    """
    words = template_ids(tokenizer, template)
    m = len(words)
    if n_ctx is not None and (n_ctx > m or (n_ctx < m and class_position != "end")):
        raise PromptFileInvalid(
            f"Template {template!r} has {len(words)} tokens before the class name, but the "
            f"context has {n_ctx}. Use {' '.join(['X'] * n_ctx)!r} where no words are meant."
        )
    names = [name.replace("_", " ") for name in class_names]
    sentences = tokenizer.encode_many([template.replace("{}", name) for name in names])
    _check_lengths(class_names, sentences, context_length)
    _check_words(class_names, sentences, words, template, strict=n_ctx is not None)
    bodies = sentences
    if n_ctx is not None:
        context = [*(~index for index in range(n_ctx)), *words[n_ctx:]]
        lengths = [len(ids) for ids in tokenizer.encode_many(names)]
        bodies = [
            _place(ids[m : m + length], context, ids[m + length :], class_position)
            for ids, length in zip(sentences, lengths, strict=True)
        ]
    rows = [[tokenizer.start_id, *body, tokenizer.end_id] for body in bodies]
    shared = 1 if class_specific else _shared_length(rows)
    return _pack(rows, shared, pad_to=None if causal else context_length)


def assemble(
    plan: SequencePlan,
    token_embedding: FloatArray,
    context: FloatArray | None = None,
    *,
    deeper: tuple[FloatArray, ...] = (),
    keys_values: tuple[FloatArray, ...] = (),
) -> Sequences:
    """Put vectors in the places of a plan.

    Args:
        plan: from ``plan_sequences``.
        token_embedding: (V, D), may be memory-mapped; only the rows needed are read.
        context: (M, D), or (C, M, D) for the C classes of the plan; None where nothing is learned.
        deeper, keys_values: handed on as they are.
    """
    return Sequences(
        prefix=_vectors(plan.prefix, token_embedding, context),
        suffix=_vectors(plan.suffix, token_embedding, context),
        eot=plan.eot,
        deeper=deeper,
        keys_values=keys_values,
    )


def _vectors(
    places: IntArray, token_embedding: FloatArray, context: FloatArray | None
) -> FloatArray:
    vectors = np.asarray(token_embedding[np.maximum(places, 0)], dtype=np.float32)
    if context is None:
        return vectors
    learned = places < 0
    if context.ndim == 3 and places.ndim == 2:
        classes = np.broadcast_to(np.arange(len(places))[:, np.newaxis], places.shape)
        vectors[learned] = context[classes[learned], ~places[learned]]
    elif context.ndim == 2:
        vectors[learned] = context[~places[learned]]
    return vectors


def _place(
    name: list[int], context: list[int], rest: list[int], position: ClassPosition
) -> list[int]:
    half = {"end": len(context), "middle": len(context) // 2, "front": 0}[position]
    return [*context[:half], *name, *context[half:], *rest]


def _shared_length(rows: list[list[int]]) -> int:
    """How many leading places are the same in every row, EOT left to the suffix."""
    longest = min(len(row) for row in rows) - 1
    first = rows[0]
    for place in range(longest):
        if any(row[place] != first[place] for row in rows):
            return place
    return longest


def _pack(rows: list[list[int]], shared: int, *, pad_to: int | None) -> SequencePlan:
    length = pad_to or max(len(row) for row in rows)
    suffix = np.full((len(rows), length - shared), PAD_ID, dtype=np.int64)
    for row, places in zip(rows, suffix, strict=True):
        places[: len(row) - shared] = row[shared:]
    return SequencePlan(
        prefix=np.asarray(rows[0][:shared], dtype=np.int64),
        suffix=suffix,
        eot=np.asarray([len(row) - shared - 1 for row in rows], dtype=np.int64),
    )


def _check_lengths(
    class_names: Sequence[str], sentences: list[list[int]], context_length: int
) -> None:
    room = context_length - 2  # SOS and EOT
    faults = [
        f"{name!r}: {len(ids)} tokens with its template"
        for name, ids in zip(class_names, sentences, strict=True)
        if len(ids) > room
    ]
    if faults:
        raise PromptTooLong(
            f"{len(faults)} class name(s) do not fit into the {room} tokens that the text tower "
            f"of this backbone reads. Shorten them, or the template:",
            faults[:50],
        )


def _check_words(
    class_names: Sequence[str],
    sentences: list[list[int]],
    words: list[int],
    template: str,
    *,
    strict: bool,
) -> None:
    """A learned context replaces the template's tokens, so they must stay tokens of their own."""
    if not strict:
        return
    for name, ids in zip(class_names, sentences, strict=True):
        if ids[: len(words)] != words:
            raise PromptFileInvalid(
                f"In template {template!r} the words before the class name run into {name!r}. "
                f"Put a space before '{{}}'."
            )
