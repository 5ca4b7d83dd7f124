"""Lay out the sequences that the text tower reads, from class names, template and context.

A sequence is ``[SOS] [context x M] [class name] [rest of the template] [EOT]``, or has the class
name in the middle or in front (CoOp, section 3.2). Because CLIP's text tower is causal, two savings
are exact:

* Tokens after EOT do not matter, so sequences are cut after the longest EOT instead of being padded
  to 77 tokens.
* The leading tokens that all classes share (SOS and usually the context) are kept apart as
  ``prefix`` and computed once.

A ``SequencePlan`` has token ids and indices of context vectors, but no vectors. ``assemble`` fills
it with numpy vectors; training fills the same plan with torch tensors, so that both use the same
sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.errors import PromptFileInvalid, PromptTooLong, counted
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.types import ClassPosition, FloatArray, IntArray

PAD_ID = 0  # CLIP pads with token 0, only after EOT


@dataclass(frozen=True, kw_only=True)
class SequencePlan:
    """Layout of C sequences: per position a token id (>= 0), or ``~m`` (< 0) for context vector m.

    Sequence c is ``prefix`` followed by ``suffix[c]``; positions after its EOT are padding.
    """

    prefix: IntArray  # (P,) shared by all classes; P >= 1, because SOS is always shared
    suffix: IntArray  # (C, S) per class
    eot: IntArray  # (C,) position of EOT within the suffix


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Inputs of the text graph, without positional embeddings (the graph adds them)."""

    prefix: FloatArray  # (P, D)
    suffix: FloatArray  # (C, S, D)
    eot: IntArray  # (C,)
    # Vectors for deeper blocks, see ``PromptVectors``. Each of ``deeper`` replaces positions 1 to M
    # of the prefix.
    deeper: tuple[FloatArray, ...] = ()  # J - 1 of (M, D)
    keys_values: tuple[FloatArray, ...] = ()  # L of (n, D)


def template_ids(tokenizer: Tokenizer, template: str) -> list[int]:
    """Return the token ids of the template's words before the class name."""
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
    """Lay out one sequence per class.

    Args:
        tokenizer: tokenizer of the backbone.
        class_names: C names; underscores become spaces, as in CoOp.
        template: template with ``{}`` in the place of the class name.
        context_length: longest sequence that the text tower takes, in tokens.
        n_ctx: M, number of learned vectors. They replace the first M tokens of the template; None
            keeps those tokens. With the class name at the end, further words of the template
            follow the M vectors (MaPLe: two vectors, then "of a").
        class_position: position of the class name among the learned vectors.
        class_specific: every class has its own context, so only SOS is shared.
        causal: False pads every sequence to ``context_length``, because such towers read all of it.

    Returns:
        The plan: prefix (P,), suffix (C, S), eot (C,).

    Raises:
        PromptFileInvalid: the template has fewer than ``n_ctx`` tokens before the class name, or
            has more and the class name is not at the end.
        PromptTooLong: some names do not fit; the message lists them.
    """
    words = template_ids(tokenizer, template)
    m = len(words)
    if n_ctx is not None and (n_ctx > m or (n_ctx < m and class_position != "end")):
        raise PromptFileInvalid(
            f"Template {template!r} has {len(words)} tokens before the class name, but the "
            f"context has {n_ctx}. Use {' '.join(['X'] * n_ctx)!r} in place of words."
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
    """Fill a plan with vectors.

    Args:
        plan: plan from ``plan_sequences``.
        token_embedding: (V, D), may be memory-mapped; only the rows needed are read.
        context: (M, D), or (C, M, D) for the C classes of the plan; None if nothing is learned.
        deeper, keys_values: passed on unchanged.

    Returns:
        The sequences: prefix (P, D), suffix (C, S, D), eot (C,).
    """
    return Sequences(
        prefix=_vectors(plan.prefix, token_embedding, context),
        suffix=_vectors(plan.suffix, token_embedding, context),
        eot=plan.eot,
        deeper=deeper,
        keys_values=keys_values,
    )


def _vectors(ids: IntArray, token_embedding: FloatArray, context: FloatArray | None) -> FloatArray:
    """Look up the vectors (..., D) of ids (P,) or (C, S)."""
    vectors = np.asarray(token_embedding[np.maximum(ids, 0)], dtype=np.float32)  # (..., D)
    if context is None:
        return vectors
    learned = ids < 0
    if context.ndim == 3 and ids.ndim == 2:
        classes = np.broadcast_to(np.arange(len(ids))[:, np.newaxis], ids.shape)  # (C, S)
        vectors[learned] = context[classes[learned], ~ids[learned]]
    elif context.ndim == 2:
        vectors[learned] = context[~ids[learned]]
    return vectors


def _place(
    name: list[int], context: list[int], rest: list[int], position: ClassPosition
) -> list[int]:
    half = {"end": len(context), "middle": len(context) // 2, "front": 0}[position]
    return [*context[:half], *name, *context[half:], *rest]


def _shared_length(rows: list[list[int]]) -> int:
    """Return the number of leading ids that all rows share; EOT always belongs to the suffix."""
    longest = min(len(row) for row in rows) - 1
    first = rows[0]
    for index in range(longest):
        if any(row[index] != first[index] for row in rows):
            return index
    return longest


def _pack(rows: list[list[int]], shared: int, *, pad_to: int | None) -> SequencePlan:
    length = pad_to or max(len(row) for row in rows)
    suffix = np.full((len(rows), length - shared), PAD_ID, dtype=np.int64)
    for row, ids in zip(rows, suffix, strict=True):
        ids[: len(row) - shared] = row[shared:]
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
        f"{name!r}: {counted(len(ids), 'token')} with its template"
        for name, ids in zip(class_names, sentences, strict=True)
        if len(ids) > room
    ]
    if faults:
        raise PromptTooLong(
            f"{counted(len(faults), 'class name')} too long for the {counted(room, 'token')} that "
            f"the text tower of this backbone reads. Shorten them, or the template:",
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
    """Raise PromptFileInvalid if a template's last word and a class name share a token.

    A learned context replaces the template's tokens, which must therefore end before the name.
    """
    if not strict:
        return
    for name, ids in zip(class_names, sentences, strict=True):
        if ids[: len(words)] != words:
            raise PromptFileInvalid(
                f"In template {template!r} the words before the class name run into {name!r}. "
                f"Put a space before '{{}}'."
            )
