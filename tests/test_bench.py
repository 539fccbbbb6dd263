"""bench.py."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import ok, run

import bench
import export
from model import Config, skeleton
from test_grow import TOKENS, default_dtype


def plain_weights(model):
    """Return the weights of model.py's model of one generation, by the names of bench.py's plain one."""
    out = {"wte.weight": model.wte.full(), "head.weight": model.head.full()}
    out["norm.weight"] = model.norm.gain.full()
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
    """The same weights give the same loss and the same three steps in babel, plain and transformers. grown
    has the same shape, and in ramping its slabs are coming in."""
    sizes = dict(n_layer=2, n_head=4, n_embd=64, head_dim=16, vocab_size=97, block_size=24)
    with default_dtype(torch.float64):
        arms = {name: bench.build(name, Config(**sizes), "cpu") for name in bench.ARMS[:4]}
        ramping = bench.build("ramping", Config(**sizes), "cpu")["model"]
    babel, grown, plain, stock = (arm["model"] for arm in arms.values())
    x, y = TOKENS[:, :-1], TOKENS[:, 1:].contiguous()

    both = ramping.growables(), grown.growables()
    assert [tensor.plan for tensor in both[0].values()] == [tensor.plan for tensor in both[1].values()]
    coming_in = [{tensor.kind for tensor in tensors.values() if tensor.ramping} for tensors in both]
    assert coming_in == [{"wte", "o", "down"}, set()]
    assert {float(tensor.factor[i]) for tensor in both[0].values() for i in tensor.ramping} == {0.5}

    # the shapes
    assert len(grown.cfg.generations) == 4
    assert max(len(tensor.plan) for tensor in grown.growables().values()) == 5
    full = [{name: tensor.full().shape for name, tensor in m.growables().items()} for m in (babel, grown)]
    assert full[0] == full[1] and babel(x).shape == grown(x).shape == plain(x).shape == stock(x).logits.shape
    assert len({sum(p.numel() for p in arm["model"].parameters()) for arm in arms.values()}) == 1

    # the steps. The RoPE, norms and loss of transformers are fp32
    with torch.no_grad():
        plain.load_state_dict(plain_weights(babel))
        tensors = export.llama_tensors(babel.cfg, babel.state_dict())
        stock.double().load_state_dict({name: make() for name, (_, make) in tensors.items()})
        assert (plain(x) - babel(x)).abs().max() < 1e-12
    steps = {name: [bench.train_step(arm, x, y) for _ in range(3)] for name, arm in arms.items()}
    losses = {name: torch.stack(loss) for name, loss in steps.items()}
    assert all(loss[0] > loss[1] > loss[2] for loss in losses.values())
    assert (losses["plain"] - losses["babel"]).abs().max() < 1e-12
    assert (losses["transformers"] - losses["babel"]).abs().max() < 1e-4


def test_bench(tmp_path):
    tiny = ["--device=cpu", "--no-compile", "--batch=1", "--block_size=16", "--rounds=2", "--steps=1"]
    names = [name for name in bench.ARMS if name != "torch_loss" or hasattr(F, "linear_cross_entropy")]
    printed = ok("bench.py", "--sizes", "cpu", "--arms", *names, "--json", tmp_path / "a.json", *tiny)
    assert "babel/plain in tokens/s" in printed
    out = json.loads((tmp_path / "a.json").read_text())
    keys = "date device torch transformers precision compile rounds steps sizes".split()
    assert set(keys) <= out.keys()
    size = out["sizes"]["cpu"]
    assert size["flops_per_token"] == Config(**size["config"]).flops_per_token()
    assert size["config"]["block_size"] == 16
    assert list(size["arms"]) == names
    for name, arm in size["arms"].items():
        assert arm["parameters"] == skeleton(Config(**size["config"])).count_params()["total"]
        assert arm["generations"] == (4 if name in ("grown", "ramping") else 1)
        assert math.isfinite(arm["loss"])
        assert arm["mfu"] is arm["peak_memory_bytes"] is arm["compile_seconds"] is None
        t, s = arm["tokens_per_second"], arm["step_seconds"]
        assert len(s["by_round"]) == 2 and 0 < t["min"] <= t["median"] <= t["max"] == 16 / s["min"]
    ratio, arms = size["tokens_per_second_ratios"], size["arms"]
    assert 0 < abs(arms["bfloat16"]["loss"] - arms["babel"]["loss"]) < 0.02
    assert list(ratio) == [f"{a}/{b}" for a, b in bench.RATIOS if a in names]
    if "torch_loss" in names:
        assert arms["torch_loss"]["loss"] == pytest.approx(arms["babel"]["loss"], abs=1e-5)
    by_round = [arms[name]["tokens_per_second"]["by_round"] for name in ("grown", "babel")]
    assert ratio["grown/babel"]["by_round"] == pytest.approx([a / b for a, b in zip(*by_round)])

    # where the time goes, and what is refused
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


def test_the_seconds_of_a_step_are_those_of_all_by_their_number(monkeypatch):
    clock = iter([5.0, 11.0])
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(bench, "train_step", lambda arm, x, y: torch.tensor(2.5))
    assert bench.run(None, torch.zeros(1), None, 3) == (2.0, 2.5)


def test_the_figures_of_an_arm(monkeypatch, capsys):
    """A step of 2 x 16 tokens in 0.5 s, of which the first took 3."""
    took, build, flops = iter([3.0]), bench.build, 1e12
    monkeypatch.setattr(bench, "run", lambda *args: (next(took, 0.5), 1.0))
    monkeypatch.setattr(bench, "build", lambda name, cfg, device, compile: build(name, cfg, device))
    monkeypatch.setattr(bench, "this_device", lambda device: ("a device", flops))
    args = dict(device="cpu", batch=2, block_size=16, compile=True, rounds=2, steps=3, profile=None)
    args = SimpleNamespace(**args)
    result = bench.measure("cpu", ["babel"], args)
    arm = result["arms"]["babel"]
    assert arm["tokens_per_second"]["median"] == 64 and arm["compile_seconds"] == 2.5
    assert arm["mfu"] == pytest.approx(64 * result["flops_per_token"] / flops)
    bench.report("cpu", result)
    cells = r"babel +\d+ +500\.0 \(500\.0 to 500\.0\) +64 \(64 to 64\) +\d\.\d% +- +2\.5 s\n"
    assert re.search(cells, capsys.readouterr().out)
