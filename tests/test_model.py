"""model.py, compiled."""

import functools
import shutil

import pytest
import torch
from helpers import ok

from grow import grow
from test_grow import steps, tiny


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
