"""CLIP's byte-pair tokenizer without torch: open_clip's token ids, computed by ``tokenizers``.

Cleaning (ftfy, HTML entities, white space, lower case) is done here as in open_clip; the Rust
library splits and merges. A test compares both tokenizers on a large list of names.
"""

import gzip
import html
from functools import cached_property, lru_cache
from pathlib import Path

import ftfy
from tokenizers import Regex
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from prompt_serve.errors import BundleInvalid

START, END = "<start_of_text>", "<end_of_text>"
_MAX_MERGES = 49_152 - 256 - 2  # open_clip reads no more of a merges file
_WORDS = (
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|"
    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokenizer:
    """Tokenizer from text to ids. Callers add start, end and padding, and check lengths."""

    def __init__(self, bpe: BpeTokenizer) -> None:
        self._bpe = bpe

    @classmethod
    def from_json(cls, path: Path) -> "Tokenizer":
        """Read a bundle's ``tokenizer.json``."""
        return cls(_of_json(path.read_bytes()))

    @classmethod
    def from_merges(cls, path: Path) -> "Tokenizer":
        """Read a gzipped list of merges, the format of CLIP and open_clip."""
        return cls(_of_merges(path.read_bytes()))

    def to_json(self) -> str:
        """Return the content of ``tokenizer.json``."""
        return self._bpe.to_str(pretty=False)

    @cached_property
    def start_id(self) -> int:
        return self._id(START)

    @cached_property
    def end_id(self) -> int:
        return self._id(END)

    def _id(self, symbol: str) -> int:
        index = self._bpe.token_to_id(symbol)
        if index is None:
            raise BundleInvalid(f"The tokenizer has no {symbol}, so it is not CLIP's.")
        return int(index)

    def encode(self, text: str) -> list[int]:
        """Clean a text and return its token ids."""
        return list(self._bpe.encode(clean(text), add_special_tokens=False).ids)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts in parallel; see ``encode``."""
        cleaned = [clean(text) for text in texts]
        return [list(e.ids) for e in self._bpe.encode_batch(cleaned, add_special_tokens=False)]


def clean(text: str) -> str:
    """Clean as open_clip: fix mojibake, unescape HTML twice, collapse white space, lower-case."""
    # In printable ASCII there is no mojibake, and without & no HTML: most class names.
    is_plain = text.isascii() and text.isprintable() and "&" not in text
    fixed = text if is_plain else html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(fixed.split()).lower()


# Reading 49,000 merges takes 0.1 s, more than all else of a small backbone.
@lru_cache(maxsize=2)
def _of_merges(data: bytes) -> BpeTokenizer:
    lines = gzip.decompress(data).decode("utf-8").split("\n")
    merges = [pair for line in lines[1 : _MAX_MERGES + 1] if len(pair := tuple(line.split())) == 2]
    byte_symbols = _byte_symbols()
    symbols = [*byte_symbols, *(f"{symbol}</w>" for symbol in byte_symbols)]
    symbols += [first + second for first, second in merges]
    symbols += [START, END]
    bpe = BpeTokenizer(
        BPE(
            vocab={symbol: index for index, symbol in enumerate(symbols)},
            merges=[(first, second) for first, second in merges],
            end_of_word_suffix="</w>",
        )
    )
    bpe.pre_tokenizer = Sequence(
        [
            Split(Regex(_WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.add_special_tokens([START, END])
    return bpe


@lru_cache(maxsize=2)
def _of_json(data: bytes) -> BpeTokenizer:
    return BpeTokenizer.from_str(data.decode())


def _byte_symbols() -> list[str]:
    """Return the 256 printable stand-ins for bytes, in the order of CLIP's ids 0 to 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = (256 + n for n in range(256 - len(printable)))
    return [chr(code) for code in printable] + [chr(code) for code in others]
