"""The base model's tokenizer: byte pairs of the prompt file's own words.

Sennrich et al. 2016, arXiv:1508.07909: the most frequent pair of neighbours becomes one token,
again and again. Of equally frequent pairs the first in the alphabet, so that the same file gives
the same tokens: the usual trainer breaks ties at random, and a resumed training would go on with
other tokens than it began with.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from lungkit.generate.prompts import Prompts
from lungkit.run.files import write_json, write_text

END = "</w>"
WORDS = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")  # as CLIP's tokenizer cuts a text


def learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """The merges, in order, that make every word in `texts` one token."""
    words = Counter(word for text in texts for word in WORDS.findall(text.lower()))
    parts = {word: (*word[:-1], word[-1] + END) for word in words}
    merges = []
    while True:
        pairs: Counter = Counter()
        for word, symbols in parts.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, symbols in parts.items():
            joined: list[str] = []
            for symbol in symbols:
                if joined and (joined[-1], symbol) == best:
                    joined[-1] += symbol
                else:
                    joined.append(symbol)
            parts[word] = tuple(joined)


def build_tokenizer(directory: Path, prompts: Prompts | None = None):
    """Learn the byte pairs of a prompt file's texts and open them as a CLIPTokenizer.

    prompts: None means those of tissue.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    merges = learn_merges((prompts or Prompts()).corpus())
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"{token}{END}" for token in tokens] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "vocab.json", vocab)
    write_text(directory / "merges.txt",
               "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write_json(directory / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
    tokenizer = CLIPTokenizer.from_pretrained(directory)
    assert len(tokenizer) == len(vocab), (len(tokenizer), len(vocab))
    return tokenizer
