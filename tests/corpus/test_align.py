"""No character of a value is in a token to learn, whatever the tokenizer says of where its tokens came from."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, processors, trainers
from tokenizers import normalizers as N
from tokenizers import pre_tokenizers as P
from transformers import PreTrainedTokenizerFast

from sani_dist.corpus.encode import encode
from sani_dist.corpus.rows import LEARN, SENSITIVE
from sani_dist.corpus.span import Document, Span
from sani_dist.errors import InputError

# What values are made of, and nothing else is: so a token shows whether it holds a part of one.
OF_VALUES = set("0123456789QVXZqvxz\uff10\uff14")
LINES = [
    "the record of the patient seen on the ward today",
    "Q V X Z QV",
    "é ß ﬁ 漢 a\u0301 😀 ( ) / - 0 1 2 3 4 5",
] * 9 + ["100542310345201"]
CONTROLS = "\x01\x02\x07\x08\x0b\x0e\x10\x1f\x7f\u200b\u200e\ufeff\u00ad"
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>"]


def charsmap() -> bytes:
    """As SentencePiece writes one (a double array over bytes, then the strings that keys become): control characters become nothing."""
    units = [0] * 1024
    units[0] = 256 << 10  # children of the root are at 256 ^ byte
    for byte in range(1, 0x20):
        units[256 ^ byte] = 768 << 10 | 1 << 8 | byte  # it ends a key, whose value is at (256 ^ byte) ^ 768
        units[512 ^ byte] = 1 << 31 | (byte in b"\t\n\r")
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + b"\0 \0"


def wordpiece() -> tuple[Tokenizer, Any]:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = N.BertNormalizer(lowercase=True), P.BertPreTokenizer()
    return made, trainers.WordPieceTrainer(vocab_size=110, special_tokens=SPECIAL, show_progress=False)


def unigram(*normalizers: Any) -> tuple[Tokenizer, Any]:
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = N.Sequence(list(normalizers)), P.Metaspace()
    return made, trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)


def bpe(normalizer: Any, pre_tokenizer: Any, **options: Any) -> tuple[Tokenizer, Any]:
    made = Tokenizer(models.BPE(**options))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    alphabet = P.ByteLevel.alphabet() if "ByteLevel" in str(pre_tokenizer) else []
    suffix = {"end_of_word_suffix": "</w>"} if "end_of_word_suffix" in options else {}
    return made, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, **suffix
    )


def byte_fallback() -> tuple[Tokenizer, Any]:
    """Llama 2's and Gemma's."""
    made, _ = bpe(N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]), None, unk_token="<unk>", byte_fallback=True)
    return made, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )


def kinds() -> dict[str, tuple[Tokenizer, Any]]:
    precompiled = N.Precompiled(charsmap())
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = P.Sequence([P.Whitespace(), P.Digits(individual_digits=True)])
    bytes_after = P.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "gpt2": bpe(None, P.ByteLevel(add_prefix_space=False)),
        "gpt2, a space before": bpe(None, P.ByteLevel(add_prefix_space=True)),
        "qwen": bpe(N.NFC(), P.Sequence([P.Split(Regex(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"), bytes_after])),
        "clip": bpe(
            N.Sequence([N.NFC(), N.Replace(Regex(r"\s+"), " "), N.Lowercase()]),
            P.Sequence([P.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True), bytes_after]),
            end_of_word_suffix="</w>",
        ),
        "llama 2": byte_fallback(),
        "bert": wordpiece(),
        "xlm-r": unigram(precompiled, N.Replace(Regex(" {2,}"), " ")),
        "t5": unigram(precompiled, N.Strip(left=False, right=True), N.Replace(Regex(" {2,}"), "▁")),
        "albert": unigram(N.Replace("``", '"'), N.NFKD(), N.StripAccents(), N.Lowercase(), precompiled),
        "nfkc": unigram(N.NFKC(), N.Nmt()),
        "words": (words, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)),
        "characters": bpe(N.NFKC(), P.Whitespace(), unk_token="<unk>", fuse_unk=True),
    }  # fmt: skip


def trained(made: Tokenizer, trainer: Any) -> PreTrainedTokenizerFast:
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


TOKENIZERS = {name: trained(*kind) for name, kind in kinds().items()}
PRECOMPILED = ("xlm-r", "t5", "albert")
AROUND = st.lists(
    st.sampled_from(["the ", "patient ", " seen", "é", "ß", "ﬁ", "漢", "a\u0301", "\u0301", " ", "  ", "\n", "\t", "(", "😀", *CONTROLS]),
    max_size=6,
).map("".join)  # fmt: skip
VALUE = st.lists(
    st.sampled_from(["00412345", "QVXZ", "QV", " ", "0", "\x07", "\u200b", "\u0301", "\uff10\uff14"]),
    min_size=1,
    max_size=4,
)


def shows_a_value(token: str) -> bool:
    """`<0x41>` is a byte, which may be a digit."""
    byte = re.fullmatch("<0x(..)>", token)
    written = chr(int(byte[1], 16)) if byte else token
    return token not in SPECIAL and bool(OF_VALUES & set(written))


@settings(max_examples=50, deadline=None)
@given(AROUND, st.lists(st.tuples(VALUE.map(lambda parts: "0" + "".join(parts)), AROUND), min_size=1, max_size=3))
@example("\x0brecord of ", [("00412345 QVXZ", " seen today")])
@example("\x02" * 8 + "é ", [("00412345", " and "), ("QVXZ", " ")])
@example("a\u0301\x07", [("0\u0301412345", "\x07\x07")])
def test_no_character_of_a_value_is_learnt(before: str, parts: list[tuple[str, str]]) -> None:
    text, spans = before, []
    for value, after in parts:
        spans.append(Span(len(text), len(text) + len(value), "A", "direct", "x"))
        text += value + after
    for name, tokenizer in TOKENIZERS.items():
        (result,) = encode(tokenizer, [Document(0, None, text, "repair")], [spans], [[]])
        learnt = tokenizer.convert_ids_to_tokens(result.input_ids[result.role == LEARN].tolist())
        assert not [token for token in learnt if shows_a_value(token)], name


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("lead", ["", "\x0b", "\x02" * 8])
def test_what_is_of_no_value_is_learnt(name: str, lead: str) -> None:
    """And the value is what is not: nobody is told that all of the text is sensitive."""
    tokenizer, text = TOKENIZERS[name], lead + "the record of 00412345 seen on the ward today"
    span = Span(text.index("0"), text.index(" seen"), "A", "direct", "x")
    (result,) = encode(tokenizer, [Document(0, None, text, "repair")], [[span]], [[]])
    tokens = tokenizer.convert_ids_to_tokens(result.input_ids.tolist())
    of_value = [i for i, token in enumerate(tokens) if shows_a_value(token)]
    if name != "words":  # which knows whole numbers alone
        assert len(of_value) > 1
    assert result.role[of_value].tolist() == [SENSITIVE] * len(of_value)
    assert (result.role == LEARN).sum() >= len(tokens) - len(of_value) - 3 - len(lead)


@pytest.mark.parametrize("name", PRECOMPILED)
def test_the_tokenizer_itself_is_wrong_about_control_characters(name: str) -> None:
    """Else the property above would hold without a check."""
    encoded = TOKENIZERS[name]("\x0brecord of 00412345", return_offsets_mapping=True, add_special_tokens=False)
    assert encoded["offset_mapping"][-1][1] < len("\x0brecord of 00412345")


def test_a_text_that_cannot_be_aligned_is_refused_by_its_number() -> None:
    made, trainer = unigram(N.Replace(Regex("record"), "patient"), N.Replace("patient", "QVXZ"))
    text = "the record of 00412345"
    with pytest.raises(
        InputError, match=r"^document 7, of repair: the tokenizer does not say which characters"
    ) as error:
        encode(
            _Wrong(trained(made, trainer)),
            [Document(7, None, text, "repair")],
            [[Span(14, 22, "A", "direct", "x")]],
            [[]],
        )
    assert "00412345" not in str(error.value)


class _Wrong:
    """A tokenizer whose offsets are one too small."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        tokens = self._tokenizer(*args, **options)
        if isinstance(args[0], str):
            tokens["offset_mapping"] = [(max(0, start - 1), max(0, end - 1)) for start, end in tokens["offset_mapping"]]
        else:
            tokens["offset_mapping"] = [
                [(max(0, start - 1), max(0, end - 1)) for start, end in of_text] for of_text in tokens["offset_mapping"]
            ]
        return tokens
