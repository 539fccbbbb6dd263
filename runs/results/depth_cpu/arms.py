"""
Question 1 at the scale of a CPU: one doubling of the depth, from 3 to 6 layers of 128 (0.6M to 1.3M parameters without
embedding and head), 3.5M tokens for the control. The text, 18M tokens of stories, children's classics, textbooks and speeches:

$ python prepare.py --input all/ --out data/small98 --words 2000,5000,10000,all --rows 0.98 --wordlist easy.txt

easy.txt: words.txt of a run of prepare.py on its stories alone. A model has 3,456 rows, and spells 13 % of the validation text.
"""

budget = 4e13
seeds = [1]
common = dict(
    data="data/small98", rows="words2000", n_layer=6, n_head=4, n_embd=128, head_dim=32, ffn_dim=384, block_size=128,
    tokens_per_step=2048, batch_size=16, learning_rate=4e-3, warmup_tokens=100_000, eval_interval=200, eval_tokens=65536,
    log_interval=100, save_interval=200, sample_tokens=0, compile=False, device="cpu",
)  # fmt: skip
control = "scratch"
_small = dict(n_layer=3, until=0.25)


def _grow(how):
    return dict(grow=f"--double depth {how}")


arms = {
    "scratch 4e-3": [{}],
    "stack, top": [_small, _grow("--init stack")],
    "scratch 4e-3, half the budget": [dict(until=0.5)],
    "random, top": [_small, _grow("--init random")],
    "copy, interleaved": [_small, _grow("--init copy --place interleave")],
    "scratch 8e-3": [dict(learning_rate=8e-3)],
    "stack, interleaved": [_small, _grow("--init stack --place interleave")],
    "scratch 2e-3": [dict(learning_rate=2e-3)],
}
