"""
Which batch, rate and decay are best, for the control first? Arms are 6 layers of 64 (0.32M parameters without
embedding and head) after 2.48e13 FLOPs: 8.85M tokens, 28 for each parameter. They have 768 rows, so that the
head costs a tenth, and read all text once:

$ python prepare.py --input text/ --out data/late --tokenizer bpe768.model --val 0.005

text/ has the training files, 384 MB, 162M tokens. The validation text is 41 documents, of which 131,072
tokens are read. log.md has what was expected and what came, and the means of checkpoints, which are no arms.
The trunks of lines.jsonl were trained in one piece, and every 40th of them was kept. The code was that of
a4b2757.
"""

budget = 2.479e13
seeds = [1337]
control = "scratch"
common = dict(
    data="data/late", n_layer=6, n_head=4, n_embd=64, head_dim=16, ffn_dim=192, block_size=128,
    tokens_per_step=2048, batch_size=16, learning_rate=2e-3, warmup_tokens=100_000,
    eval_interval=432, eval_tokens=131072, log_interval=54, save_interval=108,
    sample_tokens=0, device="cpu",
)  # fmt: skip
_8192 = dict(tokens_per_step=8192, batch_size=64, learning_rate=4e-3, eval_interval=108, save_interval=27)
_1e3 = dict(learning_rate=1e-3)


def _decay(share, until=1.0, **settings):
    """Return a trunk that is kept at 0.6, 0.8 and 0.9 of its budget, and a decay over the last share."""
    kept = [at for at in (0.6, 0.8, 0.9) if at < 1 - share + 1e-6]
    trunk = [settings | dict(until=at * until) for at in kept]
    last = dict(branch="decay") if share else dict(decay_share=0.0)
    return [*trunk, last | dict(until=until)]


_20 = _decay(0.2)
_twice = _8192 | dict(learning_rate=8e-3, warmup_tokens=800_000)
_32768 = _8192 | dict(tokens_per_step=32768, eval_interval=27)
arms = {
    "scratch 2e-3, decay 10 %": _decay(0.1),
    "scratch 2e-3, decay 20 %": _20,
    "scratch 2e-3, decay 40 %": _decay(0.4),
    "scratch 2e-3, decay 20 %, half the budget": _decay(0.2, until=0.5),
    "no decay, 2e-3": _decay(0.0),
    "scratch 2e-3, decay 20 % at 8,192": [
        *_20[:-1],
        dict(branch="decay", tokens_per_step=8192, batch_size=64),
    ],
    "scratch 4e-3, 8,192, decay 20 %": _decay(0.2, **_8192),
    "scratch 4e-3, 8,192, decay 20 %, half the budget": _decay(0.2, until=0.5, **_8192),
    "scratch 4e-3, 8,192, decay 40 %": _decay(0.4, **_8192),
    # not trained here: ../late has the like of the first three
    "scratch 4e-3, 8,192, decay 20 %, twice the budget": _decay(0.2, until=2.0, **_8192),
    "scratch 2e-3, 8,192, decay 20 %": _decay(0.2, **_8192 | dict(learning_rate=2e-3)),
    "scratch 8e-3, 8,192, decay 20 %": _decay(0.2, **_twice),
    "scratch 4e-3, 32,768, decay 20 %": _decay(0.2, **_32768),
    "scratch 1e-3, decay 20 %": _decay(0.2, **_1e3),
    "scratch 2e-3, decay 20 %, twice the budget": _decay(0.2, until=2.0),
}
