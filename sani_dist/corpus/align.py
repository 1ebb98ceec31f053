"""Which characters a token came from: what the tokenizer says, checked against what the token is.

A tokenizer may be wrong about that. One with a `Precompiled` normaliser (XLM-R, ALBERT, T5) counts from the first character it keeps, so a
control character at the start moves all offsets of a text, and the first tokens of every value would be learnt. So each token has to be
found where it is said to stand. Where one is not, the text is tokenized once more without the characters that the normaliser drops: if that
gives the same tokens, and each stands where it is said to, these places are the true ones. Else the text is refused.
"""

from __future__ import annotations

import json
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sani_dist.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pairs of a token and the text it is said to hold that are remembered: most of a corpus are pairs seen before.
_REMEMBERED = 2**18


class Aligner:
    """Checks and mends the offsets of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._normalizer = tokenizer.backend_tokenizer.normalizer
        written: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        model = written["model"]
        parts = json.dumps([written["pre_tokenizer"], written["decoder"]])
        self._bytes = _byte_alphabet() if '"ByteLevel"' in parts else None
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._suffix = model.get("end_of_word_suffix") or ""
        self._unknown = {tokenizer.unk_token_id}
        self._stands_in = lru_cache(_REMEMBERED)(self._is_in)

    def offsets(self, text: str, ids: list[int], offsets: list[tuple[int, int]], special: list[int]) -> np.ndarray:
        """The code points [start, end) that each token came from, int64 [tokens, 2]; of special tokens whatever `offsets` say.

        Raises `InputError`, without a word of the text, where nobody can tell.
        """
        if self._hold(text, ids, offsets, special):
            return np.asarray(offsets, np.int64).reshape(-1, 2)
        kept = [i for i, character in enumerate(text) if not self._is_dropped(character)]
        plain = "".join(text[i] for i in kept)
        again: Any = self._tokenizer(plain, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        if again["input_ids"] != ids or not self._hold(plain, ids, again["offset_mapping"], special):
            raise InputError(
                "the tokenizer does not say which characters its tokens came from, so nobody can tell which of them are sensitive; "
                "take control characters and other unusual ones out of this text, or leave it out"
            )
        # A token reaches to where the next character that is kept begins: what was dropped there is of no other.
        places = np.array([*kept, len(text)], np.int64)
        return places[np.asarray(again["offset_mapping"], np.int64).reshape(-1, 2)]

    def _hold(self, text: str, ids: list[int], offsets: list[tuple[int, int]], special: list[int]) -> bool:
        """Whether every token stands where the offsets say."""
        stands_in = self._stands_in
        return all(
            hidden or stands_in(token, text[start:end]) or stands_in(token, _with_marks(text, start, end))
            for token, (start, end), hidden in zip(ids, offsets, special, strict=True)
        )

    def _is_in(self, token: int, part: str) -> bool:
        if token in self._unknown:
            return True  # it shows nothing of the text
        written: str = self._tokenizer.convert_ids_to_tokens(token)
        if written in part:
            return True
        normal = part if self._normalizer is None else self._normalizer.normalize_str(part)
        if self._bytes is not None and all(character in self._bytes for character in written):
            held = bytes(self._bytes[character] for character in written.removesuffix(self._suffix)).strip()
            if any(held in text.encode() for text in (part, normal)):
                return True
            written = held.decode(errors="replace")
        elif len(written) == 6 and written.startswith("<0x") and written.endswith(">"):
            return bytes.fromhex(written[3:5]) in part.encode() + normal.encode()
        written = _plain(written.removeprefix(self._prefix).removesuffix(self._suffix))
        return written in _plain(normal) or written in _plain(part)

    def _is_dropped(self, character: str) -> bool:
        """Whether the normaliser leaves nothing of a character within a text; at its ends some strip spaces."""
        if self._normalizer is None:
            return False
        dropped: bool = self._normalizer.normalize_str(f"a{character}a") == self._normalizer.normalize_str("aa")
        return dropped


@lru_cache(4)
def aligner(tokenizer: PreTrainedTokenizerBase) -> Aligner:
    """The aligner of a tokenizer, with what it remembers."""
    return Aligner(tokenizer)


def _with_marks(text: str, start: int, end: int) -> str:
    """[start, end) with the marks around it and the character that these are on: a normal form joins them, or puts them in order."""
    while 0 < start < len(text) and _is_mark(text[start]):
        start -= 1
    while end < len(text) and _is_mark(text[end]):
        end += 1
    return text[start:end]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _plain(text: str) -> str:
    """Letters as they are compared where a normaliser may have changed them: no case, no marks, no white space."""
    parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in parts if not (c.isspace() or c == "\u2581" or unicodedata.category(c)[0] in "MC"))


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte, and the way back: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
