"""model.py: its first weights, its loss in chunks, its dtypes; and compiled."""

import functools
import shutil

import pytest
import torch
from helpers import ok

import model as model_module
from grow import grow
from model import Config, Llama
from test_grow import TOKENS, build, steps, tiny


def test_weights_start_as_the_table_of_init_std_says():
    model = Llama(Config(n_layer=8, n_head=4, n_embd=64, head_dim=16, vocab_size=97))
    model.init_weights(0)
    for name, tensor in model.growables().items():
        std = {"norm": 0.0, "o": 0.005, "down": 0.005}.get(tensor.kind, 0.02)  # 0.005: 0.02 / sqrt(16)
        assert tensor[0].std().item() == pytest.approx(std, rel=0.1), name


def test_the_loss_in_chunks_is_that_of_all_tokens_at_once(monkeypatch):
    model = build(tiny())

    def loss_and_gradients():
        model.zero_grad()
        loss = model(TOKENS[:, :-1], TOKENS[:, 1:])
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    whole = loss_and_gradients()
    monkeypatch.setattr(model_module, "CHUNK", 97 * 8)  # the logits of 8 tokens, of 72
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(whole, loss_and_gradients()))


def test_the_residual_is_float32_under_autocast():
    """Also where the parameters are bf16, as FSDP2 gathers them."""
    model, seen = build(tiny(torch.float32)).bfloat16(), []
    for block in model.layers:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(TOKENS[:, :-1])
    assert seen == [torch.float32] * 2


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("alone, graphs", [(True, 2), (False, 8)])
def test_compiled_is_as_eager(alone, graphs):
    """The graphs are those of the loss, and of the trunk or of two kinds of block, not of each layer."""
    ckpt = tiny(torch.float32)
    for sizes in ({"n_embd": 48}, {"n_layer": 3}, {"n_embd": 56, "ffn_dim": 80}):
        ckpt, _ = grow(ckpt, place="interleave" if "n_layer" in sizes else "top", **sizes)
    eager = steps(ckpt, 4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = steps(ckpt, 4, alone=alone)
    for key, w in eager["model"].items():
        assert torch.allclose(w, compiled["model"][key], atol=1e-4), key
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs


def test_evaluations_make_no_code_of_training_dynamic(stage, monkeypatch):
    """Neither the last windows of a text, which are shorter or fewer, nor a sample."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ok("train.py", *stage, "--compile=True", "--eval_tokens=700", "--max_steps=6")
    # the trunk with gradients and without, and the loss
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_a_gpus_name_is_looked_up_by_its_longest_match(monkeypatch):
    for name, (flops, _) in model_module.DEVICES.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: f"NVIDIA {name} PCIe")
        assert model_module.this_device("cuda") == (f"NVIDIA {name} PCIe", flops)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce GTX 1080")
    assert model_module.this_device("cuda")[1] is None
