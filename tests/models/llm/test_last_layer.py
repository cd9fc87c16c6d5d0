"""The last layer at label positions alone: the same loss, the same gradients, less work."""

from __future__ import annotations

import copy

import pytest
import torch

from prismatic.models.llm.attention import use_attention
from prismatic.models.llm.last_layer import shorten_last_layer
from prismatic.train.layers import checkpoint_layers
from tests.models.llm.test_attention import CPU, sdpa
from tests.models.llm.test_hf_causal import small

LENGTHS = (9, 6, 12, 3)


def losses(llm, packed: bool) -> dict[str, torch.Tensor]:
    """Loss and gradients of four examples with few labels: packed in one row, or padded to [4, 12]."""
    llm.zero_grad()
    ids = torch.randint(3, 290, (4, 12), generator=torch.Generator().manual_seed(1))
    at = [(0, 3), (0, 7), (1, 4), (2, 0), (2, 10)]  # example, position
    targets = torch.tensor([5, 6, 7, 8, 9])
    if packed:
        row = torch.cat([ids[i, :n] for i, n in enumerate(LENGTHS)])[None]
        starts = [sum(LENGTHS[:i]) for i in range(4)]
        places = torch.tensor([starts[i] + p for i, p in at])
        positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    else:
        row, positions, places = ids, None, torch.tensor([12 * i + p for i, p in at])
    embeds = llm.embed(row).detach().requires_grad_()
    loss = llm.token_losses(embeds, positions, places, targets)
    loss.backward()
    grads = {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in llm.named_parameters()}
    return {"loss": loss.detach(), "embeds": embeds.grad, **{n: g for n, g in grads.items() if g is not None}}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", ["none", "full", "selective"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_losses_and_gradients_are_those_of_the_whole_layer(model_type, how, packed, tokenizer):
    plain = sdpa(model_type, tokenizer)
    ours = copy.deepcopy(plain)
    use_attention(ours, "sdpa", CPU, half=False)
    assert ours.shortened and list(ours.state_dict()) == list(plain.state_dict())
    rows = []
    ours.layers[-1].mlp.register_forward_hook(lambda m, i, o: rows.append(o.shape[:-1].numel()))
    checkpoint_layers(ours.layers, how)
    expected, got = losses(plain, packed), losses(ours, packed)
    assert set(rows) == {5} and expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=2e-5, rtol=1e-3, msg=name)


def test_copies_and_many_labels_and_asking(tokenizer):
    llm = sdpa("llama", tokenizer)
    use_attention(llm, "sdpa", CPU, half=False)
    twin = copy.deepcopy(llm)
    assert twin.layers[-1] is not llm.layers[-1] and shorten_last_layer(twin)
    for name, value in losses(llm, True).items():
        torch.testing.assert_close(losses(twin, True)[name], value)
    rows = []
    llm.layers[-1].mlp.register_forward_hook(lambda m, i, o: rows.append(o.shape[1]))
    llm.token_losses(llm.embed(torch.arange(3, 11)[None]), None, torch.arange(7), torch.arange(4, 11))
    llm.llm(input_ids=torch.arange(3, 11)[None])
    assert rows == [8, 8], "most positions have labels, or the logits are asked for: the layer is computed whole"


def test_other_families_are_left_alone(tokenizer):
    for name in ("gemma", "phi3", "gpt2"):
        llm = small(name, tokenizer)
        before = type(llm.layers[-1])
        assert not shorten_last_layer(llm) and type(llm.layers[-1]) is before
