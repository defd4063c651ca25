"""The base model's tokenizer: byte pairs of the prompt file's own words."""

from __future__ import annotations

import json
from pathlib import Path

from lungkit.generate.prompts import Prompts
from lungkit.run.files import write_json, write_text


def build_tokenizer(directory: Path):
    """Train a byte-level BPE on the prompt file's texts and open it as a CLIPTokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.normalizers import Lowercase
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern=r" +", behavior="removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(Prompts().corpus() * 4, trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=sorted(alphabet), end_of_word_suffix="</w>",
        show_progress=False))
    merges = json.loads(bpe.to_str())["model"]["merges"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]
    tokens = sorted(alphabet)
    tokens += [f"{token}</w>" for token in tokens] + ["".join(pair) for pair in merges]
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
