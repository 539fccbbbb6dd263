"""
Does growing pay by depth, twice as deep as ../best_size? To 12 layers of 64 (0.64M parameters without embedding and head) with
8e13 FLOPs: 12.6M tokens for the control, 20 for each parameter. The text is that of ../cpu, whose docstring says how it is
prepared. The head is a fifth of a step's FLOPs, at 6 layers a third.
"""

budget = 8e13
seeds = [1, 2, 3]
deciding = ["scratch 2e-3", "3 x 64, 6 x 64, stack"]
common = dict(
    data="data/small98", rows="words2000", n_layer=12, n_head=4, n_embd=64, head_dim=16, ffn_dim=192, block_size=128,
    tokens_per_step=2048, batch_size=16, learning_rate=2e-3, warmup_tokens=100_000, eval_interval=250, eval_tokens=65536,
    eval_stages=False, log_interval=100, save_interval=250, sample_tokens=0, device="cpu",
)  # fmt: skip
control = "scratch"


def _deep(depth, until=1.0, init="stack"):
    return dict(grow=f"--depth {depth} --init {init}", until=until)


arms = {
    "scratch 2e-3": [{}],
    "3 x 64, 6 x 64, stack": [dict(n_layer=3, until=0.08), _deep(6, 0.25), _deep(12)],
    "6 x 64, stack": [dict(n_layer=6, until=0.25), _deep(12)],
    "3 x 64, stack": [dict(n_layer=3, until=0.25), _deep(12)],
    "a smaller one from scratch, 6 x 64": [dict(n_layer=6)],
    "scratch 2e-3, half the budget": [dict(until=0.5)],
    "scratch 1e-3": [dict(learning_rate=1e-3)],
}
