"""The tokenizer of the embedded base model: words of the prompts are tokens, none is unknown."""

from __future__ import annotations

from lungkit.tools.tokenizer import build_tokenizer, learn_merges


def test_frequent_words_of_the_prompts_are_whole_and_any_other_is_spelt(tmp_path):
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    begin, end = tokenizer("").input_ids
    for word in ("lung", "benign", "nuclei", "glands"):
        assert len(tokenizer(word).input_ids) == 3
    assert tokenizer("Nuclei").input_ids == tokenizer("nuclei").input_ids
    for other in ("qxz", "j", "0.5"):
        assert not {begin, end} & set(tokenizer(other).input_ids[1:-1])


def test_of_equally_frequent_pairs_the_first_in_the_alphabet_is_joined():
    expected = [("a", "b"), ("ab", "c</w>"), ("d", "e"), ("de", "f</w>"), ("g", "h</w>")]
    for texts in (["gh def abc"], ["def", "ABC gh"], ["abc def", "gh"]):
        assert learn_merges(texts) == expected
    assert learn_merges(["gh gh abc"])[0] == ("g", "h</w>"), "the most frequent comes first"
