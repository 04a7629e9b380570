"""The embedded model's tokenizer: one piece for each word of BabyAI-Text's language, letters and
bytes for everything else.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(16))
"""Stand for the spans left out in span corruption (Raffel et al. 2020)."""
FIRST_SENTINEL_ID = 3
MAX_LENGTH = 512
"""Tokens of the longest text the model was made for."""

_ENGLISH = """
    You see carry a an the wall step steps forward left right and floor door key ball box goal lava
    object red green blue purple yellow grey open closed locked
    turn go pick up drop toggle done to put next in front of you behind on your then after
    Goal of agent Observation Action Possible action
    Your last instruction was better worse than one before
    Question Answer where what is are how far which side do not sight nothing look for it at
    until find move toward towards away from around back take use face explore room reach approach
    wait stop unlock search keep walk straight ahead closer with by near here there no yes
    this that me I can
"""
_FRENCH = """
    Tu vois portes un une mur à pas devant gauche droite et sol porte clef balle boîte but lave
    rouge verte bleue violette jaune grise ouverte fermée
    Actions possibles pour l'agent But de aller la le où est en vue
"""
_LINE_STARTS = tuple("Goal Observation Action Possible Actions But Question Answer Your".split())
"""Words that also follow a line break, where no space marks their beginning."""
_ACCENTED = "àâçèéêëîïôùûüœ"
_SPACE = "▁"
_WORD_SCORE, _LETTER_SCORE, _BYTE_SCORE = -6.0, -14.0, -30.0


def make_tokenizer() -> Tokenizer:
    """Build the tokenizer; no data is involved, so it is the same everywhere.

    Words carry the space before them, as in T5. Unlike in T5 a line break is a token of its own.
    The end-of-sequence token is added where special tokens are asked for.
    """
    pieces: dict[str, float] = {PAD: 0.0, EOS: 0.0, UNKNOWN: 0.0, **dict.fromkeys(SENTINELS, 0.0)}
    pieces |= {f"<0x{value:02X}>": _BYTE_SCORE for value in range(256)}
    words = (_ENGLISH + _FRENCH).split() + list(string.digits)
    pieces |= {_SPACE + word: _WORD_SCORE for word in dict.fromkeys(words)}
    pieces |= dict.fromkeys(_LINE_STARTS, _WORD_SCORE)
    pieces |= dict.fromkeys((f"{_SPACE}\n", "\n", _SPACE), _WORD_SCORE)
    for letter in string.digits + string.punctuation + string.ascii_letters + _ACCENTED:
        pieces.setdefault(letter, _WORD_SCORE if letter in string.punctuation else _LETTER_SCORE)
    tokenizer = Tokenizer(Unigram(list(pieces.items()), unk_id=UNKNOWN_ID, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(Regex("\r\n?"), "\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A $B {EOS}", special_tokens=[(EOS, EOS_ID)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN, *SENTINELS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` as transformers reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "additional_special_tokens": list(SENTINELS),
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
