"""The causal text tower, distilled from MiniLM's embeddings of names in any template.

Two savings make it fit two cores, both exact because the tower is causal: all texts of a batch
share one template, so the words before the name are computed once; and names are batched by
length, so hardly any padding is computed.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from open_clip.transformer import TextTransformer
from torch import nn
from torch.nn import functional as F

from pretraining.names import EMBED_DIM, Names, load_names
from pretraining.tokens import CONTEXT_LENGTH, VOCAB_SIZE, load_tokenizer
from pretraining.workdir import WorkDir, written_whole

TEXT_CFG = {
    "context_length": CONTEXT_LENGTH,
    "vocab_size": VOCAB_SIZE,
    "width": 192,
    "heads": 3,
    "layers": 4,
}
PRODUCT_TEMPLATE = "a photo of a {}."
TEMPLATES = {  # template -> sampling weight
    "{}": 3.0,
    "{}.": 1.0,
    PRODUCT_TEMPLATE: 4.0,
    "a photo of a {}": 2.0,
    "a photo of {}.": 0.5,
    "a picture of a {}.": 0.5,
    "a drawing of a {}.": 0.5,
    "an icon of a {}.": 0.5,
    "an emoji of a {}.": 0.5,
}
MAX_NAME_TOKENS = 14
CONTRAST_SCALE = 30.0


class TokenTable:
    """Names as token ids, split into the shared prefix of a template and the rest."""

    def __init__(self, words: tuple[str, ...], work: WorkDir) -> None:
        self.tokenizer = load_tokenizer(work.bpe)
        self.names = [self.tokenizer.encode(word)[:MAX_NAME_TOKENS] for word in words]
        self.lengths = np.array([len(name) for name in self.names])

    def split(self, template: str, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids before the names (P,), and from the names to the end of text (B, S)."""
        before, after = template.split("{}")
        prefix = [self.tokenizer.sot_token_id, *self.tokenizer.encode(before)]
        ending = [*self.tokenizer.encode(after), self.tokenizer.eot_token_id]
        texts = [self.names[row] + ending for row in rows]
        longest = max(map(len, texts))
        padded = [text + [0] * (longest - len(text)) for text in texts]
        return torch.tensor(prefix), torch.tensor(padded)


def new_text_tower() -> TextTransformer:
    """Build the tower as open_clip does inside CLIP, with open_clip's initial weights."""
    return TextTransformer(**TEXT_CFG, output_dim=EMBED_DIM, pool_type="argmax")


def encode_texts(tower: Any, prefix: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """(B, E) features of texts (B, S) which all continue `prefix`; not normalized.

    `prefix` is token ids (P,), or vectors (P, D) in their place: a learned context.

    The same numbers as open_clip's `encode_text` on the joined ids (a check in `train` holds it);
    `tower` is a `TextTransformer` or a `CLIP`, which name their parts alike.
    """
    start, batch = len(prefix), len(texts)
    positions = tower.positional_embedding
    vectors = prefix if prefix.is_floating_point() else tower.token_embedding(prefix)
    shared = (vectors + positions[:start])[None]
    own = tower.token_embedding(texts) + positions[start : start + texts.shape[1]]
    # Tokens attend to the whole prefix, and causally to each other.
    seen = torch.ones(texts.shape[1], start + texts.shape[1], dtype=torch.bool).tril(start)
    for block in tower.transformer.resblocks:
        query, key, value = _qkv(block, shared)
        own_query, own_key, own_value = _qkv(block, own)
        own_key = torch.cat([key.expand(batch, -1, -1, -1), own_key], dim=2)
        own_value = torch.cat([value.expand(batch, -1, -1, -1), own_value], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        shared = _finish(block, shared, attended)
        attended = F.scaled_dot_product_attention(own_query, own_key, own_value, attn_mask=seen)
        own = _finish(block, own, attended)
    pooled = tower.ln_final(own[torch.arange(batch), texts.argmax(-1)])
    features: torch.Tensor = pooled @ tower.text_projection
    return features


def _qkv(block: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys, values, each (B, heads, L, D / heads)."""
    heads = block.attn.num_heads
    joined = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1)]


def _finish(block: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    x = x + block.attn.out_proj(attended.transpose(1, 2).flatten(2))
    finished: torch.Tensor = x + block.mlp(block.ln_2(x))
    return finished


@torch.no_grad()
def name_features(
    tower: Any, table: TokenTable, rows: np.ndarray, template: str = PRODUCT_TEMPLATE
) -> torch.Tensor:
    """(len(rows), E) unit features of names in a template."""
    order = np.argsort(table.lengths[rows], kind="stable")
    features = torch.zeros(len(rows), EMBED_DIM)
    for chunk in np.array_split(order, max(1, len(rows) // 512)):
        features[chunk] = F.normalize(
            encode_texts(tower, *table.split(template, rows[chunk])), dim=-1
        )
    return features


def batches(
    names: Names, table: TokenTable, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield endless batches of name rows, one template each, with similar lengths."""
    chance = names.weights / names.weights.sum()
    templates, often = list(TEMPLATES), np.array(list(TEMPLATES.values()))
    while True:
        drawn = rng.choice(len(names.words), 16 * size, p=chance)
        drawn = drawn[np.argsort(table.lengths[drawn] + rng.random(len(drawn)))]
        for batch in rng.permutation(drawn.reshape(16, size)):
            yield batch, str(rng.choice(templates, p=often / often.sum()))


def distillation_loss(
    features: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosine loss to the target plus the contrastive loss against other targets.

    Args:
        features: (B, E), not normalized.
        rows: (B,) rows of the names in `targets`.
        targets: (N, E), unit length.
        negatives: (K,) rows of other names to tell apart.

    Returns:
        The loss, and the mean cosine to the own target.
    """
    unit = F.normalize(features, dim=-1)
    candidates = torch.cat([rows, negatives])
    cosine = (unit * targets[rows]).sum(-1).mean()
    same = (rows[:, None] == candidates[None]).float()
    logits = CONTRAST_SCALE * unit @ targets[candidates].T
    contrast = -(same / same.sum(-1, keepdim=True) * logits.log_softmax(-1)).sum(-1).mean()
    return 10 * (1 - cosine) + contrast, cosine


def train_text_tower(
    work: WorkDir, steps: int = 2000, size: int = 512, peak: float = 2e-3, seed: int = 0
) -> None:
    """Train the tower with a checkpoint every 250 steps; an interrupted run resumes."""
    if work.text_tower.exists():
        return
    names, rng = load_names(work), np.random.default_rng(seed)
    torch.manual_seed(seed)
    table, targets = TokenTable(names.words, work), torch.from_numpy(names.targets)
    tower = new_text_tower().train()
    _check_encoding(tower, table)
    optimizer = torch.optim.AdamW(_parameter_groups(tower), lr=peak, betas=(0.9, 0.98))
    first = _resume(work, tower, optimizer, rng)
    stream, started, cosines = batches(names, table, size, rng), time.time(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        batch, template = next(stream)
        negatives = torch.from_numpy(rng.integers(0, len(targets), 2048))
        loss, cosine = distillation_loss(
            encode_texts(tower, *table.split(template, batch)),
            torch.from_numpy(batch),
            targets,
            negatives,
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        cosines.append(cosine.item())
        if (step + 1) % 50 == 0:
            print(
                f"text tower: step {step + 1}/{steps} cosine {np.mean(cosines[-50:]):.3f} "
                f"{(time.time() - started) / 60:.1f} min",
                flush=True,
            )
        if (step + 1) % 250 == 0:
            _checkpoint(work, tower, optimizer, rng, step + 1)
    with written_whole(work.text_tower) as draft:
        torch.save(tower.state_dict(), draft)


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 150) -> float:
    """Return the rate: linear warm-up, then a cosine to 1 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _parameter_groups(tower: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in tower.parameters() if p.ndim >= 2]
    vectors = [p for p in tower.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]


def _checkpoint_path(work: WorkDir) -> Any:
    return work.text_tower.with_suffix(".checkpoint.pt")


def _checkpoint(
    work: WorkDir,
    tower: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    step: int,
) -> None:
    with written_whole(_checkpoint_path(work)) as draft:
        torch.save(
            {
                "tower": tower.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": rng.bit_generator.state,
                "step": step,
            },
            draft,
        )


def _resume(
    work: WorkDir, tower: nn.Module, optimizer: torch.optim.Optimizer, rng: np.random.Generator
) -> int:
    if not _checkpoint_path(work).exists():
        return 0
    stored = torch.load(_checkpoint_path(work), weights_only=True)
    tower.load_state_dict(stored["tower"])
    optimizer.load_state_dict(stored["optimizer"])
    rng.bit_generator.state = stored["rng"]
    return int(stored["step"])


@torch.no_grad()
def _check_encoding(tower: Any, table: TokenTable) -> None:
    """Check that sharing the prefix gives the same features as open_clip's forward."""
    prefix, texts = table.split(PRODUCT_TEMPLATE, np.arange(16))
    whole = torch.zeros(16, CONTEXT_LENGTH, dtype=torch.long)
    whole[:, : len(prefix)] = prefix
    whole[:, len(prefix) : len(prefix) + texts.shape[1]] = texts
    difference = float((tower(whole) - encode_texts(tower, prefix, texts)).abs().max())
    print(f"text tower: shared prefix against open_clip's forward, difference {difference:.1e}")
    if difference > 1e-4:
        raise ValueError(f"encode_texts differs from open_clip's text tower by {difference:.1e}.")
