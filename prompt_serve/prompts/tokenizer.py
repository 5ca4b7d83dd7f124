"""CLIP's byte-pair tokenizer without torch: the ids are open_clip's, the engine ``tokenizers``.

The cleaning (ftfy, HTML entities, white space, lower case) is done here in Python, as open_clip
does it; the splitting and merging is the Rust library's. A test compares both on a large name list.
"""

import gzip
import html
from functools import cached_property
from pathlib import Path

import ftfy
from tokenizers import Regex
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from prompt_serve.errors import BundleInvalid

START, END = "<start_of_text>", "<end_of_text>"
_MAX_MERGES = 49_152 - 256 - 2  # what open_clip reads of a merges file, whatever it holds
_WORDS = (
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|"
    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokenizer:
    """Text -> token ids, without start, end, padding or truncation; those belong to the caller."""

    def __init__(self, bpe: BpeTokenizer) -> None:
        self._bpe = bpe

    @classmethod
    def from_json(cls, path: Path) -> "Tokenizer":
        """Read a bundle's ``tokenizer.json``."""
        return cls(BpeTokenizer.from_file(str(path)))

    @classmethod
    def from_merges(cls, path: Path) -> "Tokenizer":
        """Read a gzipped list of merges, as CLIP and open_clip ship it."""
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        merges = [
            pair for line in lines[1 : _MAX_MERGES + 1] if len(pair := tuple(line.split())) == 2
        ]
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
        return cls(bpe)

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._bpe.to_str(pretty=False)

    @cached_property
    def vocab_size(self) -> int:
        return self._bpe.get_vocab_size()

    @cached_property
    def start_id(self) -> int:
        return self._id(START)

    @cached_property
    def end_id(self) -> int:
        return self._id(END)

    def _id(self, symbol: str) -> int:
        index = self._bpe.token_to_id(symbol)
        if index is None:
            raise BundleInvalid(f"The tokenizer has no {symbol}; it is not CLIP's.")
        return int(index)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, cleaned and lower-cased first."""
        return list(self._bpe.encode(clean(text), add_special_tokens=False).ids)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Like ``encode`` for many texts, in parallel."""
        cleaned = [clean(text) for text in texts]
        return [list(e.ids) for e in self._bpe.encode_batch(cleaned, add_special_tokens=False)]


def clean(text: str) -> str:
    """open_clip's cleaning: mend mojibake, undo HTML entities twice, fold white space, lower."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's order (its ids 0 to 255)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = (256 + n for n in range(256 - len(printable)))
    return [chr(code) for code in printable] + [chr(code) for code in others]
