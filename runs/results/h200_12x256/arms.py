"""
Two doublings of depth on a GPU: 12 layers of 256 with 768 rows, on twice the FLOPs of ../h200_6x256, whose
stages it shares (--out out/compare/h200 for both).
"""

budget = 5.4e15
seeds = [1337]
control = "scratch 12"
common = dict(
    data="data/late", n_head=4, n_embd=256, head_dim=64, block_size=256, tokens_per_step=32768,
    batch_size=128, learning_rate=2e-3, warmup_tokens=1_000_000, eval_interval=240, eval_tokens=131072,
    log_interval=120, sample_tokens=0, check_data=False,
)  # fmt: skip
_decay = dict(branch="decay")
_to_12 = [dict(grow="--depth 12 --init stack", until=0.8), _decay]
_to_6 = dict(grow="--depth 6 --init stack", until=0.4)
arms = {
    "scratch 12": [dict(n_layer=12, until=0.8), _decay],
    "3 -> 6 -> 12 at 25, 50 %": [dict(n_layer=3, until=0.25), _to_6, dict(until=0.5), *_to_12],
    "6 -> 12 at 50 %": [dict(n_layer=6, until=0.4), dict(until=0.5), *_to_12],
    "6 from scratch": [dict(n_layer=6, until=0.4), dict(until=0.8), _decay],
}
