"""Tests of tokenizers with prompts."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from paths import PARITY

from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.tokens import PromptedTokenizer, load_plain_tokenizer

FOLDER = PARITY / "jina_clip_tiny"
LONG = "cat " * 200


def make(folder=FOLDER, *, longest=128, max_text_tokens=None, query="find: "):
    return PromptedTokenizer(
        Checkpoint("tiny", folder),
        {"query": query, "document": ""},
        longest=longest,
        max_text_tokens=max_text_tokens,
    )


def ids(tokenizer, texts, kind="document"):
    return tokenizer(texts, kind)["input_ids"].tolist()


def test_prompts_go_before_the_texts_of_their_side():
    tokenizer = make()
    assert ids(tokenizer, ["cat"], "query") == ids(tokenizer, ["find: cat"])
    assert ids(tokenizer, ["cat"], "query") != ids(tokenizer, ["cat"])


def test_shorter_texts_are_filled_up():
    tokens = make()(["cat", "a red cat"], "document")
    assert tokens["attention_mask"][1].all()
    assert not tokens["attention_mask"][0].all()
    padding = tokens["input_ids"][tokens["attention_mask"] == 0]
    assert set(padding.tolist()) == {make().pad_token_id}


def test_long_texts_are_cut_and_counted_in_silence(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = make(max_text_tokens=20)
    assert len(ids(tokenizer, [LONG])[0]) == 20
    lengths = tokenizer.count_tokens([LONG, "cat", LONG], "document")
    assert [length > tokenizer.max_text_tokens for length in lengths] == [True, False, True]
    assert tokenizer.count_tokens([], "document") == []
    assert not caplog.records


def test_count_at_the_limit():
    length = len(ids(make(), ["a red cat"])[0])
    for limit, cut in [(length, 0), (length - 1, 1)]:
        tokenizer = make(max_text_tokens=limit, query="")
        (length,) = tokenizer.count_tokens(["a red cat"], "document")
        assert (length > tokenizer.max_text_tokens) == cut


def test_the_shorter_limit_of_model_and_tokenizer_holds():
    assert make(longest=100).max_text_tokens == 100
    assert make(longest=10_000).max_text_tokens == 130  # the file's model_max_length


def test_limits_that_cannot_be():
    with pytest.raises(ValueError, match=r"max_text_tokens=129 is more .* pass at most 128"):
        make(max_text_tokens=129)
    with pytest.raises(ValueError, match=r"max_text_tokens=2 leaves no room for a text: the query"):
        make(max_text_tokens=2)


def test_many_threads():
    tokenizer = make(max_text_tokens=20)

    def cut_and_count(number):
        batch = [LONG] * number
        shape = tokenizer(batch, "document")["input_ids"].shape
        return shape == (number, 20) and min(tokenizer.count_tokens(batch, "document")) > 20

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(cut_and_count, [5, 6, 7, 8, 9] * 20))


def test_follows_its_file(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "copy")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert ids(make(folder), ["CAT"]) == ids(make(folder), ["cat"])
    assert ids(make(), ["CAT"]) != ids(make(), ["cat"])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ModelError, match=r"tiny: tokenizer\.json is missing; download"):
        make(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tiny: its tokenizer does not load"):
        make(tmp_path)


def plain(folder=FOLDER):
    return load_plain_tokenizer(Checkpoint("tiny", folder))


def test_plain_text_is_text():
    tokenizer = plain(FOLDER.parent / "jina_m0_tiny")
    text = "a <|image_pad|> b"
    found = tokenizer.encode(text).ids
    assert tokenizer.token_to_id("<|image_pad|>") not in found
    assert tokenizer.decode(found) == text


def test_plain_texts_are_neither_cut_nor_filled_up(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "copy")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    rest = {"direction": "Right", "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    content["truncation"] = {
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    content["padding"] = {"strategy": {"Fixed": 40}, "pad_to_multiple_of": None, **rest}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for text in (LONG, "cat"):
        assert plain(folder).encode(text).ids == plain().encode(text).ids


def test_plain_missing_and_broken_files(tmp_path):
    with pytest.raises(ModelError, match=r"tiny: tokenizer\.json is missing; download"):
        plain(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tiny: its tokenizer does not load"):
        plain(tmp_path)
