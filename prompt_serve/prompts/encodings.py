"""Encodings of learned contexts: the numbers themselves, or factors, rows or projections.

    Dense            context itself                         CoOp, VPT, KgCoOp, ...
    LowRank          product of two factors                 DIP
    Deep             one of the above for each of J blocks  deep prompts of either tower
    PrunedKeyValues  rows of keys and values, n per block   ADAPT
    Projected        text contexts times a matrix           MaPLe's image branch
    Conditional      context and a network                  CoCoOp

Each tensor is float16 or a ``QuantizedTensor``. An encoding knows its tensors, which are all that a
prompt file stores of it, but not how they were learned. ``folding`` turns any encoding into plain
context vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.quantized_tensor import QuantizedTensor, StoredTensor

Base = Literal["template", "none"]
Tensors = dict[str, StoredTensor | NDArray[np.uint8]]


class StoredEncoding(Protocol):
    """What every encoding tells a prompt file: its kind, its tensors and its options."""

    kind: ClassVar[str]

    def tensors(self) -> Tensors: ...

    def options(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Context itself (CoOp): (M, D), or (C, M, D) if every class has its own."""

    kind: ClassVar[str] = "dense"
    context: StoredTensor

    def __post_init__(self) -> None:
        check_tensor("context", self.context, dims=(2, 3))

    @property
    def n_ctx(self) -> int:
        return int(self.context.shape[-2])

    @property
    def width(self) -> int:
        return int(self.context.shape[-1])

    @property
    def n_classes(self) -> int | None:
        """C if the context is class-specific; None if all classes share it."""
        return int(self.context.shape[0]) if self.context.ndim == 3 else None

    def tensors(self) -> Tensors:
        return {"context": self.context}

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Low-rank context ``P = P_init + P_A P_B`` (DIP, Alg. 3): factors (M, R) and (R, D).

    ``P_init`` is never stored. With base ``template`` it is the token embeddings of the template's
    words before the class name; with ``none`` it is zero.
    """

    kind: ClassVar[str] = "low_rank"
    p_a: StoredTensor
    p_b: StoredTensor
    base: Base = "template"

    def __post_init__(self) -> None:
        check_tensor("p_a", self.p_a, dims=(2,))
        check_tensor("p_b", self.p_b, dims=(2,))
        if self.p_a.shape[1] != self.p_b.shape[0]:
            raise PromptFileInvalid(
                f"The factors do not fit: p_a is {self.p_a.shape}, p_b is {self.p_b.shape}; "
                f"expected (M, R) and (R, D)."
            )
        if self.base not in ("template", "none"):
            raise PromptFileInvalid(f"Unknown base {self.base!r}; expected 'template' or 'none'.")

    @property
    def n_ctx(self) -> int:
        return int(self.p_a.shape[0])

    @property
    def width(self) -> int:
        return int(self.p_b.shape[1])

    @property
    def n_classes(self) -> int | None:
        return None

    def tensors(self) -> Tensors:
        return {"p_a": self.p_a, "p_b": self.p_b}

    def options(self) -> dict[str, Any]:
        return {"base": self.base}


Layer = Dense | LowRank  # vectors (M, D) of one block


@dataclass(frozen=True, kw_only=True)
class Deep:
    """Contexts (M, D) of the first J >= 2 blocks, each with an encoding of its own."""

    kind: ClassVar[str] = "deep"
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if len(self.layers) < 2:
            raise PromptFileInvalid("A deep context has at least two blocks.")
        shapes = {(layer.n_ctx, layer.width, layer.n_classes) for layer in self.layers}
        if len(shapes) != 1 or self.layers[0].n_classes is not None:
            raise PromptFileInvalid(
                "The blocks of a deep context must have the same shape (M, D), shared by all "
                f"classes; got {sorted(map(str, shapes))}."
            )
        if any(isinstance(layer, LowRank) and layer.base != "none" for layer in self.layers[1:]):
            raise PromptFileInvalid(
                "Only the first block of a deep context can build on the template's words."
            )

    @property
    def n_ctx(self) -> int:
        return self.layers[0].n_ctx

    @property
    def width(self) -> int:
        return self.layers[0].width

    @property
    def n_classes(self) -> int | None:
        return None

    def tensors(self) -> Tensors:
        return _numbered(self.layers)

    def options(self) -> dict[str, Any]:
        return {"layers": [_described(layer) for layer in self.layers]}


@dataclass(frozen=True, kw_only=True)
class PrunedKeyValues:
    """Rows of keys and values (ADAPT): ``rows`` (N, D), the next ``lengths[l]`` for each block l.

    Its name in prompt files is ``ragged``.
    """

    kind: ClassVar[str] = "ragged"
    lengths: NDArray[np.uint8]  # (L,) rows per block of the tower
    rows: StoredTensor  # (N, D)

    n_ctx: ClassVar[None] = None
    n_classes: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_tensor("rows", self.rows, dims=(2,), may_be_empty=True)
        if not isinstance(self.lengths, np.ndarray):
            raise PromptFileInvalid("The lengths are quantized; expected one byte for each block.")
        if self.lengths.dtype != np.uint8 or self.lengths.ndim != 1 or not self.lengths.size:
            raise PromptFileInvalid(
                f"The lengths are {self.lengths.dtype} {self.lengths.shape}; "
                f"expected one byte for each block."
            )
        if int(self.lengths.sum()) != self.rows.shape[0]:
            raise PromptFileInvalid(
                f"The lengths add up to {int(self.lengths.sum())}, "
                f"but there are {self.rows.shape[0]} rows."
            )

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    def tensors(self) -> Tensors:
        return {"lengths": self.lengths, "rows": self.rows}

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Projection of text vectors to image vectors: ``x W + b``, W (D, D') or ``W = W_A W_B``."""

    factors: tuple[StoredTensor, ...]  # W, or W_A (D, R) and W_B (R, D')
    bias: StoredTensor | None = None  # (D',)

    def __post_init__(self) -> None:
        if len(self.factors) not in (1, 2):
            raise PromptFileInvalid("A projection has one weight, or two factors.")
        for factor in self.factors:
            check_tensor("weight", factor, dims=(2,))
        first, last = self.factors[0], self.factors[-1]
        if len(self.factors) == 2 and first.shape[1] != last.shape[0]:
            raise PromptFileInvalid(
                f"The factors do not fit: w_a is {first.shape}, w_b is {last.shape}."
            )
        if self.bias is not None:
            check_tensor("bias", self.bias, dims=(1,))
            if self.bias.shape != (self.width,):
                raise PromptFileInvalid(f"The bias is {self.bias.shape}; expected ({self.width},).")

    @property
    def text_width(self) -> int:
        return int(self.factors[0].shape[0])

    @property
    def width(self) -> int:
        return int(self.factors[-1].shape[1])

    def tensors(self) -> Tensors:
        names = ("weight",) if len(self.factors) == 1 else ("w_a", "w_b")
        named: Tensors = dict(zip(names, self.factors, strict=True))
        return named if self.bias is None else {**named, "bias": self.bias}


@dataclass(frozen=True, kw_only=True)
class Projected:
    """Image vectors of J blocks, projected from the text vectors of the same blocks (MaPLe)."""

    kind: ClassVar[str] = "projected"
    layers: tuple[Projection, ...]

    n_ctx: ClassVar[None] = None
    n_classes: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.layers or len({(p.text_width, p.width) for p in self.layers}) != 1:
            raise PromptFileInvalid(
                "All projections of a context must have the same shape (D, D')."
            )

    @property
    def width(self) -> int:
        return self.layers[0].width

    def tensors(self) -> Tensors:
        return _numbered(self.layers)

    def options(self) -> dict[str, Any]:
        return {"layers": len(self.layers)}


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """Context and a network that shifts it for each image (CoCoOp, section 3.2).

    ``context + W_2 relu(W_1 x + b_1) + b_2`` for image features x (E,).
    """

    kind: ClassVar[str] = "conditional"
    context: StoredTensor  # (M, D)
    w_1: StoredTensor  # (H, E)
    b_1: StoredTensor  # (H,)
    w_2: StoredTensor  # (D, H)
    b_2: StoredTensor  # (D,)

    n_classes: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_tensor("context", self.context, dims=(2,))
        for name in ("w_1", "w_2", "b_1", "b_2"):
            check_tensor(name, getattr(self, name), dims=(2,) if name[0] == "w" else (1,))
        hidden, width = self.w_1.shape[0], self.context.shape[1]
        if (self.b_1.shape, self.w_2.shape, self.b_2.shape) != (
            (hidden,),
            (width, hidden),
            (width,),
        ):
            raise PromptFileInvalid("The layers of the network do not fit each other.")

    @property
    def n_ctx(self) -> int:
        return int(self.context.shape[0])

    @property
    def width(self) -> int:
        return int(self.context.shape[1])

    def tensors(self) -> Tensors:
        return {
            "context": self.context,
            "w_1": self.w_1,
            "b_1": self.b_1,
            "w_2": self.w_2,
            "b_2": self.b_2,
        }

    def options(self) -> dict[str, Any]:
        return {}


TextEncoding = Dense | LowRank | Deep | PrunedKeyValues | Conditional
ImageEncoding = Dense | LowRank | Deep | PrunedKeyValues | Projected
Encoding = Dense | LowRank | Deep | PrunedKeyValues | Projected | Conditional


def describe(encoding: "StoredEncoding") -> str:
    """Return a readable name: ``low_rank``, ``low_rank+codebook``, ``codebook``, ``deep dense``."""
    quantized = any(isinstance(tensor, QuantizedTensor) for tensor in encoding.tensors().values())
    kind = encoding.kind
    if isinstance(encoding, Deep):
        kind = " and ".join(dict.fromkeys(layer.kind for layer in encoding.layers))
        return f"deep {_with_codebook(kind, quantized=quantized)}"
    return _with_codebook(kind, quantized=quantized)


def _with_codebook(kind: str, *, quantized: bool) -> str:
    if not quantized:
        return kind
    return "codebook" if kind == "dense" else f"{kind}+codebook"


def encoding_from(kind: str, tensors: Mapping[str, Any], options: Mapping[str, Any]) -> Encoding:
    """Rebuild a context encoding from the content of a prompt file.

    Args:
        kind: ``Encoding.kind``.
        tensors: tensors as returned by ``tensors()``.
        options: options as returned by ``options()``.

    Raises:
        PromptFileInvalid: the kind is unknown, or tensors are missing, unexpected or inconsistent.
    """
    match kind:
        case "dense":
            return Dense(**exact_tensors(kind, tensors, {"context"}))
        case "low_rank":
            base = options.get("base", "template")
            return LowRank(**exact_tensors(kind, tensors, {"p_a", "p_b"}), base=base)
        case "ragged":
            return PrunedKeyValues(**exact_tensors(kind, tensors, {"lengths", "rows"}))
        case "conditional":
            return Conditional(
                **exact_tensors(kind, tensors, {"context", "w_1", "b_1", "w_2", "b_2"})
            )
        case "deep":
            return Deep(layers=_read_layers(tensors, options.get("layers")))
        case "projected":
            return _read_projected(tensors, options.get("layers"))
    raise PromptFileInvalid(
        f"Unknown encoding {kind!r}; this version reads 'dense', 'low_rank', 'deep', 'ragged', "
        f"'projected' and 'conditional'. A newer prompt-serve may have written the file."
    )


def exact_tensors(kind: str, tensors: Mapping[str, Any], expected: set[str]) -> dict[str, Any]:
    """Return the tensors of an encoding, or raise PromptFileInvalid if others are there."""
    if set(tensors) != expected:
        raise PromptFileInvalid(
            f"Encoding {kind!r} has the tensors {sorted(expected)}; the file has {sorted(tensors)}."
        )
    return dict(tensors)


def _read_layers(tensors: Mapping[str, Any], described: Any) -> tuple[Layer, ...]:
    if not isinstance(described, list) or not all(isinstance(d, dict) for d in described):
        raise PromptFileInvalid("A deep context needs a description of each of its blocks.")
    layers: list[Layer] = []
    for own, description in zip(_split(tensors, len(described)), described, strict=True):
        options = description.get("options", {})
        if not isinstance(options, dict):
            raise PromptFileInvalid(
                f"The options of block {len(layers)} of a deep context are {options!r}; expected "
                f"an object."
            )
        layer = encoding_from(str(description.get("encoding")), own, options)
        if not isinstance(layer, Dense | LowRank):
            raise PromptFileInvalid(f"A block of a deep context cannot be {layer.kind!r}.")
        layers.append(layer)
    return tuple(layers)


def _read_projected(tensors: Mapping[str, Any], count: Any) -> Projected:
    if not isinstance(count, int) or not 1 <= count <= 1000:
        raise PromptFileInvalid(f"Encoding 'projected' has {count!r} blocks; expected 1 to 1,000.")
    layers = []
    for own in _split(tensors, count):
        bias = own.pop("bias", None)
        if set(own) not in ({"weight"}, {"w_a", "w_b"}):
            raise PromptFileInvalid(f"A projection cannot have the tensors {sorted(own)}.")
        factors = tuple(own[name] for name in ("weight", "w_a", "w_b") if name in own)
        layers.append(Projection(factors=factors, bias=bias))
    return Projected(layers=tuple(layers))


def _numbered(layers: tuple[Layer, ...] | tuple[Projection, ...]) -> Tensors:
    return {
        f"{index}.{name}": tensor
        for index, layer in enumerate(layers)
        for name, tensor in layer.tensors().items()
    }


def _split(tensors: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Undo ``_numbered``."""
    layers: dict[str, dict[str, Any]] = {str(index): {} for index in range(count)}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if index not in layers:
            raise PromptFileInvalid(f"Tensor {key!r} belongs to none of the {count} blocks.")
        layers[index][name] = tensor
    return list(layers.values())


def _described(layer: Layer) -> dict[str, Any]:
    return {"encoding": layer.kind, "options": layer.options()}


def check_tensor(
    name: str, tensor: StoredTensor, *, dims: tuple[int, ...], may_be_empty: bool = False
) -> None:
    """Raise PromptFileInvalid unless a tensor is finite float16 with one of ``dims`` axes."""
    # The numbers of a codebook were checked with it; looking all of them up takes memory.
    plain = tensor.codebook if isinstance(tensor, QuantizedTensor) else tensor
    if plain.dtype != np.float16:
        raise PromptFileInvalid(f"Tensor {name!r} is {plain.dtype}; expected float16.")
    if tensor.ndim not in dims or (0 in tensor.shape and not may_be_empty):
        expected = " or ".join(f"{d}-dimensional" for d in dims)
        raise PromptFileInvalid(f"Tensor {name!r} has shape {tensor.shape}; expected {expected}.")
    if not np.isfinite(plain).all():
        count = int((~np.isfinite(plain)).sum())
        raise PromptFileInvalid(
            f"Tensor {name!r} has {count} values that are NaN or infinite. "
            f"The training diverged; train again with a smaller learning rate."
        )
