"""
Does growing pay where the final size is about the best one for the budget? Arms end at 6 layers of 64 (0.32M
parameters without embedding and head) after 4e13 FLOPs: 10.4M tokens for the control, 33 for each parameter.
The text is that of ../cpu, whose docstring says how it is prepared.
"""

import torch

from model import Config, init_std

budget = 4e13
seeds = [1, 2, 3]
deciding = [
    "scratch 2e-3",
    "scratch 1e-3",
    "a smaller one from scratch, 3 x 64",
    "a smaller one from scratch, 3 x 64, 1e-3",
    "3 x 64, stack",
    "3 x 64, stack, 1e-3",
    "2 x 64, stack",
    "3 x 32, 3 x 48, 6 x 48, 6 x 64",
]
common = dict(
    data="data/small98", rows="words2000",
    n_layer=6, n_head=4, n_embd=64, head_dim=16, ffn_dim=192, block_size=128,
    tokens_per_step=2048, batch_size=16, learning_rate=2e-3, warmup_tokens=100_000,
    eval_interval=250, eval_tokens=65536, eval_stages=False, log_interval=100, save_interval=250,
    sample_tokens=0, device="cpu",
)  # fmt: skip
control = "scratch"
_32, _48 = dict(n_head=2, n_embd=32, ffn_dim=96), dict(n_head=3, n_embd=48, ffn_dim=128)
_shallow, _thin = dict(n_layer=3, until=0.25), _48 | dict(until=0.25)
_first, _wide_48 = _32 | dict(n_layer=3), dict(grow="--width 48 --heads 3 --ffn 128")


def _deep(how="stack", **settings):
    return dict(grow=f"--double depth --init {how}", **settings)


def _to(n_layer, **settings):
    return dict(grow=f"--depth {n_layer} --init stack", **settings)


def _wide(**settings):
    return dict(grow="--width 64 --heads 4 --ffn 192", **settings)


def _ladder(*untils):
    """Return three doublings, by width, depth and width: 2.1, 2.0 and 1.9 times the parameters."""
    return _chain(untils, _first, _wide_48, _deep(), _wide())


def _chain(untils, *stages):
    """Return the stages with their untils; the last one's is 1, unless it is given."""
    return [stage | dict(until=until) for stage, until in zip(stages, [*untils, 1.0])]


def draw_wte(ckpt):
    """Draw new columns of the embedding as at a start from scratch: the growth changes the function."""
    _draw(ckpt, ["wte"])


def draw_all(ckpt):
    """Draw all that is new as at a start from scratch, nothing zero: the growth changes the function."""
    _draw(ckpt, ["wte", "o", "down"])


def _draw(ckpt, kinds):
    cfg, rng = Config(**ckpt["config"]), torch.Generator().manual_seed(0)
    for name, x in sorted(ckpt["model"].items()):  # layers.0.attn.o.1
        kind = name.split(".")[-2:][0]
        if kind in kinds and not x.any():
            x.normal_(0, init_std(kind, cfg), generator=rng)


def halve(ckpt):
    """Make x + f(x) two steps of half the length."""
    for name, x in ckpt["model"].items():
        if ".o." in name or ".down." in name:
            x.mul_(0.5)


def slow_down(ckpt):
    """Let what was already learnt go on at half its rate."""
    for g in ckpt["config"]["generations"]:
        g["learning_rate"] /= 2


arms = {
    "scratch 2e-3": [{}],
    "scratch 4e-3": [dict(learning_rate=4e-3)],
    "3 x 32, 3 x 48, 6 x 48, 6 x 64": _ladder(0.05, 0.12, 0.28),
    "a smaller one from scratch, 3 x 64": [dict(n_layer=3)],
    "3 x 64, stack": [_shallow, _deep()],
    "6 x 48, random": [_thin, _wide()],
    "scratch 2e-3, half the budget": [dict(until=0.5)],
    "6 x 48, nothing zero": [_thin, _wide(edit="draw_all")],
    "3 x 64, stack, Adam dropped": [_shallow, _deep("stack --fresh_optimizer")],
    "3 x 64, stack, shared, new x 1": [_shallow, _deep(policy="shared", new_rate=1.0)],
    "3 x 64, stack, at 50 %": [_shallow | dict(until=0.5), _deep()],
    "3 x 64, stack, old at half its rate": [_shallow, _deep(edit="slow_down")],
    "3 x 64, halves, interleaved": [_shallow, _deep("stack --place interleave", edit="halve")],
    "3 x 64, random": [_shallow, _deep("random")],
    "3 x 64, copy": [_shallow, _deep("copy")],
    "2 x 64, stack": [_shallow | dict(n_layer=2), _to(6)],
    "3 x 64, stack, easy text first": [_shallow | dict(data_mix="words5000"), _deep()],
    "3 x 64, stack, at 10 %": [_shallow | dict(until=0.1), _deep()],
    "3 x 32, 3 x 48, 3 x 64, 6 x 64": _chain([0.05, 0.12, 0.28], _first, _wide_48, _wide(), _deep()),
    "1 x 64, 2 x 64, 3 x 64, stack": _chain([0.05, 0.12, 0.25], dict(n_layer=1), _to(2), _to(3), _to(6)),
    "half the ffn, random": [dict(ffn_dim=96, until=0.25), dict(grow="--ffn 192")],
    "half the head_dim, random": [dict(head_dim=8, until=0.25), dict(grow="--head_dim 16")],
    "scratch 1e-3": [dict(learning_rate=1e-3)],
    "3 x 64, stack, on 0.8 of the budget": [_shallow | dict(until=0.2), _deep(until=0.8)],
    "3 x 64, stack, 1e-3": [_shallow | dict(learning_rate=1e-3), _deep(learning_rate=1e-3)],
    "scratch 1e-3, half the budget": [dict(learning_rate=1e-3, until=0.5)],
    "scratch 5e-4": [dict(learning_rate=5e-4)],
    "3 x 64, stack, interleaved": [_shallow, _deep("stack --place interleave")],
    "a smaller one from scratch, 3 x 64, 1e-3": [dict(n_layer=3, learning_rate=1e-3)],
    "6 x 48, new embedding columns drawn": [_thin, _wide(edit="draw_wte")],
    "3 x 32, 3 x 48, 6 x 48, 6 x 64, on 0.9 of the budget": _ladder(0.045, 0.11, 0.25, 0.9),
    # ready, not trained yet
    "1 x 64, stack": [_shallow | dict(n_layer=1), _to(6)],
    "3 x 32, 3 x 48, 6 x 48, 6 x 64, later": _ladder(0.1, 0.25, 0.5),
}
