"""
Growing by depth on a GPU, at 16 times the parameters and 110 times the FLOPs of ../late: 6 layers of 256 with
768 rows, 32,768 tokens a step. The same text, protocol and shares; bf16.
"""

budget = 2.7e15
seeds = [1337, 2]
deciding = ["scratch 2e-3", "3 -> 6 at 50 %, 2e-3"]  # with both seeds
control = "scratch"
common = dict(
    data="data/late", n_layer=6, n_head=4, n_embd=256, head_dim=64, block_size=256, tokens_per_step=32768,
    batch_size=128, learning_rate=2e-3, warmup_tokens=1_000_000, eval_interval=240, eval_tokens=131072,
    log_interval=120, sample_tokens=0, check_data=False,
)  # fmt: skip
_decay = dict(branch="decay")


def _scratch(rate):
    return [dict(until=0.8, learning_rate=rate), _decay]


def _grown(at, rate):
    """Return 3 layers until a share of the FLOPs, then plain copies on top; one clock decays all."""
    grown = dict(grow="--depth 6 --init stack", until=0.8, learning_rate=rate)
    return [dict(n_layer=3, until=at, learning_rate=rate), grown, _decay]


arms = {
    "scratch 2e-3": _scratch(2e-3),
    "3 -> 6 at 50 %, 2e-3": _grown(0.5, 2e-3),
    "scratch 4e-3": _scratch(4e-3),
    "3 -> 6 at 50 %, 4e-3": _grown(0.5, 4e-3),
    "scratch 2e-3, twice the budget": [dict(until=0.8), dict(until=1.6), _decay | dict(until=2.0)],
    "scratch 1e-3": _scratch(1e-3),
    "3 -> 6 at 25 %, 2e-3": _grown(0.25, 2e-3),
    "3 from scratch, 2e-3": [dict(n_layer=3, until=0.5), dict(until=0.8), _decay],
}
