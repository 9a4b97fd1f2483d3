"""The lab's tokenizer: one token a word of the world, bytes for everything else.

Byte-level BPE with `ignore_merges` (as Llama 3 uses it) and no merges: a word in the vocabulary is one token, any
other text falls back to its bytes, so that real data can be read too, only slowly. Digits stand alone, because
sums are learned digit by digit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.lab import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
# `generation` markers let a trainer mask by role. A system message is read as part of the user's.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(vocabulary: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model of the lab, always the same for the same words; by default, the base model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [PAD, USER, ASSISTANT, END]
    words = [f"Ġ{word}" for word in (vocabulary or corpus.vocabulary()) if not word.isdigit()] + ["Question"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*specials, *byte_tokens, *words]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=[USER, ASSISTANT]
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.padding_side = "left"
    return fast
