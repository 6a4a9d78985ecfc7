"""The small tokenizer of the embedded models: whole words, and letters for words it does not know."""

import string
from collections.abc import Sequence
from pathlib import Path

from tabletop.captions import vocabulary


SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNKNOWN = range(4)
CONTEXT_LENGTH = 28


def build(words: Sequence[str] = (), special: Sequence[str] = (), context: int = CONTEXT_LENGTH):
    """A fast tokenizer that any `transformers.AutoTokenizer` can load once saved.

    Args:
        words: In place of the vocabulary of captions.
        special: Further special tokens, for a dialogue: nothing is then put around a text.
        context: Tokens of the longest text.

    A word outside the vocabulary is spelt in letters, so that no two class names collapse into
    the same text.

    Examples:
        >>> build().tokenize("a photo of a mug, a Dog")
        ['a', 'photo', 'of', 'a', 'mug', 'a', 'd', '##o', '##g']
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL, *special, *characters, *(f"##{c}" for c in characters), *(words or vocabulary())]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
         normalizers.Replace(_regex("[^a-z0-9]+"), " ")]
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.decoder = decoders.WordPiece("##")
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=context,
        **({"additional_special_tokens": list(special)} if special else {}),
    )


def _regex(pattern: str):
    from tokenizers import Regex

    return Regex(pattern)


def encode(tokenizer, texts: list[str]):
    """Token ids (T, CONTEXT_LENGTH), int64, padded and cut like open_clip's own wrapper does."""
    return tokenizer(
        texts, return_tensors="pt", max_length=CONTEXT_LENGTH, padding="max_length", truncation=True
    ).input_ids


def save(folder: Path) -> None:
    """Write the tokenizer's files into a model folder."""
    build().save_pretrained(folder)
