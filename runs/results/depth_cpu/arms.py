"""
Question 1 at the scale of a CPU: one doubling of the depth, from 4 to 8 layers of 128 (0.8M to 1.6M parameters without
embedding and head). The text is all stages of data/babel as the README prepares it, here with fewer rows: prepare.py --rows 0.98.
"""

budget = 3e13
seeds = [1, 2]
common = dict(
    data="data/babel98", rows="words2000", n_layer=8, n_head=4, n_embd=128, head_dim=32, ffn_dim=384, block_size=128,
    tokens_per_step=4096, batch_size=32, learning_rate=4e-3, warmup_tokens=100_000, eval_interval=50, eval_tokens=65536,
    log_interval=50, save_interval=0, compile=False, device="cpu",
)  # fmt: skip
control = "scratch"
_small = dict(n_layer=4, until=0.25)


def _grow(how):
    return dict(grow=f"--double depth {how}")


arms = {
    "scratch 4e-3": [{}],
    "random, top": [_small, _grow("--init random")],
    "copy, interleaved": [_small, _grow("--init copy --place interleave")],
    "stack, top": [_small, _grow("--init stack")],
    "scratch 2e-3": [dict(learning_rate=2e-3)],
    "scratch 8e-3": [dict(learning_rate=8e-3)],
    "stack, interleaved": [_small, _grow("--init stack --place interleave")],
}
