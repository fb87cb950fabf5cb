"""MTM's query over the tokens of a row's prompts: equal to attention over the tokens written out row by row."""

import math

import pytest
import torch

from flip_ctr.modeling_flip import text_attention_flip
from flip_ctr.modeling_flip.text_attention_flip import attend_to_tokens

ROWS, PROMPTS, LENGTH, SIZE = 7, 5, 4, 6


def inputs(dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    query, states = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((ROWS, SIZE), (PROMPTS, LENGTH, SIZE))
    )
    lengths = torch.tensor([4, 1, 3, 2, 4])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    index = torch.randint(PROMPTS, (ROWS, 2), generator=generator)
    index[0] = 3  # a prompt twice in a row
    return query, states, mask, index


def written_out(query, states, mask, index):
    tokens, kept = states[index].flatten(1, 2), mask[index].flatten(1)
    scores = torch.einsum("bh,blh->bl", query, tokens) / math.sqrt(SIZE)
    return torch.einsum("bl,blh->bh", scores.masked_fill(kept == 0, -torch.inf).softmax(-1), tokens)


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_values_and_gradients_are_those_of_tokens_written_out(monkeypatch, rows_at_once):
    monkeypatch.setitem(text_attention_flip.CHUNK_BYTES, "cpu", rows_at_once * 2 * LENGTH * SIZE * 4)
    query, states, mask, index = inputs()
    found, expected = attend_to_tokens(query, states, mask, index), written_out(query, states, mask, index)
    torch.testing.assert_close(found, expected)
    of_context = torch.randn(ROWS, SIZE, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(context, (query, states), of_context) for context in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][1][mask == 0] == 0).all() and gradients[0][1][mask == 1].any()
    assert torch.autograd.gradcheck(lambda *given: attend_to_tokens(*given, mask, index), (query, states))


def test_states_need_no_gradient():
    query, states, mask, index = inputs()
    attend_to_tokens(query, states.detach(), mask, index).sum().backward()
    assert query.grad.any() and states.grad is None


def test_low_precision_is_summed_in_float32():
    query, states, mask, index = (part.detach() for part in inputs(torch.float32))
    low = states.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_to_tokens(query, low, mask, index)
    assert found.dtype == torch.bfloat16
    expected = written_out(query, low.float(), mask, index)
    assert torch.equal(found, expected.bfloat16()) or (found - expected).abs().max() < 0.01 * expected.abs().max()
