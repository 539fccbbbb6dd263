"""
Does growing by depth still pay where the control's batch, rate and decay are tuned? Arms end at 6 layers of
64 with 768 rows, on the text and the budget of ../regime. The best control comes from there: its line was
trained at a4b2757, the others at the commit that log.md names, on one thread of one core, beside other work.
"""

import math

import torch

from model import Config, skeleton

budget = 2.479e13
seeds = [1337, 2, 3]
deciding = ["scratch 4e-3, decay 20 %", "3 -> 6 at 50 %"]  # with all seeds
control = "scratch"
common = dict(
    data="data/late", n_layer=6, n_head=4, n_embd=64, head_dim=16, ffn_dim=192, block_size=128,
    tokens_per_step=8192, batch_size=64, learning_rate=4e-3, warmup_tokens=100_000, eval_interval=108,
    eval_tokens=131072, log_interval=27, save_interval=27, sample_tokens=0, device="cpu",
)  # fmt: skip
_decay = dict(branch="decay")
_stack = "--depth 6 --init stack"


def _grown(at, how=_stack, **settings):
    """Return 3 layers until a share of the FLOPs, then 6; one clock decays all."""
    return [dict(n_layer=3, until=at), dict(grow=how, until=0.8, **settings), _decay]


def _wider(**how):
    """Return 6 layers of 32 until a quarter of the FLOPs, then of 64."""
    return [_small | dict(n_layer=6, until=0.25), dict(grow="--double width", until=0.8) | how, _decay]


def _fill(ckpt):
    """Change a model whose width was just doubled: what writes into the new half of the residual copies what
    writes into the old one, and what reads it is zero. The gains make up for the norms' factor, sqrt(1/2).
    Exact but for the norms' eps."""
    w = ckpt["model"]
    for name, tensor in skeleton(Config(**ckpt["config"])).growables().items():
        last = len(tensor.plan) - 1  # the slab on n_embd
        if tensor.kind == "norm":
            w[f"{name}.0"] = w[f"{name}.0"] * math.sqrt(2)
            w[f"{name}.1"] = w[f"{name}.0"].clone()
        elif tensor.kind in ("wte", "o", "down"):
            w[f"{name}.{last}"] = torch.cat([w[f"{name}.{i}"] for i in range(last)])
        else:
            w[f"{name}.{last}"] = torch.zeros_like(w[f"{name}.{last}"])


def _middle(ckpt):
    """Change 3 layers to which copies came on top: 0, 1, 2, and copies of them, become 0, 1, three copies of
    1, and 2."""
    order = [0, 1, 5, 2, 3, 4]  # where a layer goes
    for named in (ckpt["model"], ckpt["optimizer"]):
        layers = {name: named.pop(name) for name in list(named) if name.startswith("layers.")}
        for name, value in layers.items():
            _, i, rest = name.split(".", 2)
            named[f"layers.{order[int(i)]}.{rest}"] = value
    for i in (2, 3, 4):
        for name in [name for name in ckpt["model"] if name.startswith(f"layers.{i}.")]:
            ckpt["model"][name] = ckpt["model"][name.replace(f".{i}.", ".1.", 1)].clone()
    for of in ("layer_birth", "layer_born"):
        ckpt["config"][of] = [ckpt["config"][of][order.index(i)] for i in range(6)]


_trunk = [dict(until=0.6), dict(until=0.8)]
_twice = [dict(until=1.6), _decay | dict(until=2.0)]
_small = dict(n_layer=3, n_head=2, n_embd=32, ffn_dim=96)
arms = {
    "scratch 4e-3, decay 20 %": [*_trunk, _decay],
    "scratch 4e-3, decay 100 %": [dict(decay_share=1.0)],  # from the end of the warmup on
    "scratch 4e-3, warmup 0.8M, decay 20 %": [dict(warmup_tokens=800_000, until=0.8), _decay],
    "scratch 8e-3, decay 20 %": [
        *(stage | dict(learning_rate=8e-3, warmup_tokens=800_000) for stage in _trunk),
        _decay,
    ],
    "3 -> 6 at 25 %": _grown(0.25),
    "3 -> 6 at 50 %": _grown(0.5),
    "3 -> 6 at 65 %": [dict(n_layer=3, until=0.5), dict(until=0.65), *_grown(0.65)[1:]],
    "2 -> 3 -> 6 at 25, 50 %": [
        dict(n_layer=2, until=0.25),
        dict(grow="--depth 3 --init stack", until=0.5),
        *_grown(0.5)[1:],
    ],
    "scratch 2e-3, decay 20 %": [*(stage | dict(learning_rate=2e-3) for stage in _trunk), _decay],
    "scratch 4e-3, decay 20 %, twice the budget": _twice,
    "3 -> 6 at 50 %, twice the budget": [
        dict(n_layer=3, until=0.5),
        dict(until=1.0),
        dict(grow=_stack, until=1.6),
        _twice[1],
    ],
    # what starts the new, and its rates: branches of one trunk
    "3 -> 6 at 50 %, ramp 0.5M": _grown(0.5, f"{_stack} --ramp 500000"),
    "3 -> 6 at 50 %, ramp 0.2M": _grown(0.5, f"{_stack} --ramp 200000"),
    "3 -> 6 at 50 %, ramp 2M": _grown(0.5, f"{_stack} --ramp 2000000"),
    "3 -> 6 at 50 %, exact (copy)": _grown(0.5, "--depth 6 --init copy"),
    "3 -> 6 at 50 %, then all at 8e-3": _grown(0.5, learning_rate=8e-3, policy="shared", new_rate=1.0),
    "3 -> 6 at 50 %, the new at 8e-3": _grown(0.5, learning_rate=8e-3),
    "3 -> 6 at 25 %, twice the budget": [dict(n_layer=3, until=0.5), dict(grow=_stack, until=1.6), _twice[1]],
    "3 x 32 -> 3 x 64 -> 6 x 64 at 15, 50 %": [
        _small | dict(until=0.15),
        dict(grow="--double width", until=0.5),
        *_grown(0.5)[1:],
    ],
    "6 x 32 -> 6 x 64 at 25 %": _wider(),
    "6 x 32 -> 6 x 64 at 25 %, copies under a ramp of 0.5M": _wider(
        grow="--double width --init copy --ramp 500000"
    ),
    "6 x 32 -> 6 x 64 at 25 %, writers copied, readers zero": _wider(edit="_fill"),
    "3 -> 6 at 50 %, interleaved": _grown(0.5, f"{_stack} --place interleave"),
    "3 -> 6 at 50 %, no copy of layer 1": _grown(0.5, f"{_stack} --skip 1"),
    "3 -> 6 at 50 %, copies of the middle": _grown(0.5, edit="_middle"),
    "3 -> 6 at 50 %, Adam's state copied": _grown(0.5, f"{_stack} --copy_state"),
    "scratch 4e-3, decay 20 %, half the budget": [dict(until=0.4), _decay | dict(until=0.5)],
    "3 -> 6 at 50 %, half the budget": [
        dict(n_layer=3, until=0.25),
        dict(grow=_stack, until=0.4),
        _decay | dict(until=0.5),
    ],
    # the smaller model, on the trunks of what is grown
    "3 x 64 from scratch, half the budget": [
        dict(n_layer=3, until=0.25),
        dict(until=0.4),
        _decay | dict(until=0.5),
    ],
    "3 x 64 from scratch": [dict(n_layer=3, until=0.5), dict(until=0.8), _decay],
    "3 x 64 from scratch, twice the budget": [dict(n_layer=3, until=0.5), dict(until=1.0), *_twice],
    "scratch 4e-3, decay 20 %, four times the budget": [_twice[0], dict(until=3.2), _decay | dict(until=4.0)],
    "scratch 2e-3, decay 20 %, four times the budget": [
        dict(learning_rate=2e-3, until=3.2),
        _decay | dict(until=4.0),
    ],
    "scratch 8e-3, decay 20 %, four times the budget": [
        dict(learning_rate=8e-3, warmup_tokens=800_000, until=3.2),
        _decay | dict(until=4.0),
    ],
    "3 -> 6 at 50 %, four times the budget": [
        dict(n_layer=3, until=0.5),
        dict(until=1.0),
        dict(until=2.0),
        dict(grow=_stack, until=3.2),
        _decay | dict(until=4.0),
    ],
}
