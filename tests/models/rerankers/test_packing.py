"""Sequences in one row give the same results as each one alone with transformers' attention."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from llama_index_gap.models.rerankers.caches import digest
from llama_index_gap.models.rerankers.packing import Piece, in_batches, run_packed, use_packing

WIDTH = 32
CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    model = Qwen2VLTextModel(Qwen2VLTextConfig(**CONFIG)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model


@pytest.fixture(scope="module")
def packed(plain):
    model = Qwen2VLTextModel(Qwen2VLTextConfig(**CONFIG)).eval()
    model.load_state_dict(plain.state_dict())
    use_packing(model)
    return model


def vectors(length, seed):
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))


def positions(length, start=0):
    return (torch.arange(length) + start).expand(3, -1)


def piece(length, seed, **options):
    return Piece(vectors(length, seed), positions(length), **options)


def alone(model, embeddings, where):
    """The last hidden state of a sequence, computed by transformers."""
    hidden = model(inputs_embeds=embeddings[None], position_ids=where[:, None]).last_hidden_state
    return hidden[0, -1]


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_each_is_as_if_alone(plain, packed):
    pieces = [piece(length, seed) for seed, length in enumerate([5, 1, 9, 3])]
    found = run_packed(packed, pieces)
    close(found, torch.stack([alone(plain, each.embeddings, each.positions) for each in pieces]))


def test_it_goes_on_from_what_was_kept(plain, packed):
    beginning, one, other = vectors(6, 0), vectors(4, 1), vectors(1, 2)
    first = Piece(torch.cat([beginning, one]), positions(10), keep=6)
    run_packed(packed, [piece(3, 9), first])
    prefix = first.kept
    assert (prefix.length, prefix.next_position) == (6, 6)
    assert prefix.nbytes == 2 * 2 * 2 * 6 * 8 * 4  # layers, keys and values, heads, …, float32
    before = digest({str(n): torch.stack(layer) for n, layer in enumerate(prefix.layers)})

    later = [Piece(new, positions(len(new), start=6), past=prefix) for new in (one, other)]
    found = run_packed(packed, [later[0], piece(2, 7), later[1]])

    close(found[0], alone(plain, torch.cat([beginning, one]), positions(10)))
    close(found[2], alone(plain, torch.cat([beginning, other]), positions(7)))
    after = digest({str(n): torch.stack(layer) for n, layer in enumerate(prefix.layers)})
    assert before == after


def test_what_is_kept_does_not_hold_on_to_the_pass(packed):
    first = piece(10, 0, keep=4)
    run_packed(packed, [first, piece(50, 1)])
    for keys, values in first.kept.layers:
        assert keys.untyped_storage().nbytes() == keys.nbytes
        assert values.untyped_storage().nbytes() == values.nbytes


def test_a_kept_text_can_be_cut(plain, packed):
    first = piece(10, 0, keep=8)
    run_packed(packed, [first])
    new = vectors(2, 1)
    later = Piece(new, positions(2, start=3), past=first.kept.cut(3))
    (found,) = run_packed(packed, [later])
    close(found, alone(plain, torch.cat([vectors(10, 0)[:3], new]), positions(5)))


def test_positions_are_those_of_the_piece(plain, packed):
    # An image of two rows and three columns after one token.
    where = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3] * 2])
    where[2] = torch.tensor([0, 1, 2, 3, 1, 2, 3, 4])
    whole = Piece(vectors(8, 0), where, keep=7)
    (found,) = run_packed(packed, [whole])
    close(found, alone(plain, vectors(8, 0), where))
    assert whole.kept.next_position == 4


@given(st.lists(st.integers(1, 9)), st.integers(1, 12), st.none() | st.integers(1, 4))
def test_batches(weights, most_weight, most_items):
    batches = list(
        in_batches(weights, lambda weight: weight, most_weight=most_weight, most_items=most_items)
    )
    assert [weight for batch in batches for weight in batch] == weights
    for batch in batches:
        assert len(batch) == 1 or sum(batch) <= most_weight
        assert 1 <= len(batch) <= (most_items or len(batch))
    for batch, following in itertools.pairwise(batches):
        assert len(batch) == most_items or sum(batch) + following[0] > most_weight
