r"""
Does growing pay, at the scale of a CPU? Arms end at 6 layers of 128 (1.3M parameters without embedding and
head) after 4e13 FLOPs: 3.5M tokens for the control. The text is 18M tokens of stories, children's classics,
textbooks and speeches:

$ python prepare.py --input all/ --out data/small98 --words 2000,5000,10000,all --rows 0.98 \
    --wordlist easy.txt

easy.txt is words.txt of a run of prepare.py on the stories alone. A model has 3,456 rows, and spells 13 % of
the validation text.
"""

import os
import runpy

_spec = runpy.run_path(os.path.join(os.path.dirname(__file__), "../best_size/arms.py"))
budget, seeds, control = (_spec[name] for name in ("budget", "seeds", "control"))
_shallow, _chain, _deep = (_spec[name] for name in ("_shallow", "_chain", "_deep"))
deciding = ["scratch 4e-3", "scratch 2e-3", "stack, top", "64 wide, random"]
common = _spec["common"] | dict(n_embd=128, head_dim=32, ffn_dim=384, eval_interval=200, save_interval=200)
_4e3 = dict(learning_rate=4e-3)  # of the first arms, before the controls had shown that 2e-3 is better
_narrow = dict(n_head=3, n_embd=96, ffn_dim=256, until=0.25)  # 1.28 M / 1.78 without embedding and head
_half = dict(n_head=2, n_embd=64, ffn_dim=192, until=0.25)


def _wide(how="", **settings):
    return dict(grow=f"--width 128 --heads 4 --ffn 384 {how}", **settings)


# 2.25, 1.93 and 1.93 times the parameters
_first, _wide_96 = _half | dict(n_layer=3), dict(grow="--width 96 --heads 3 --ffn 256")
_ladder = _chain([0.05, 0.12, 0.28], _first, _wide_96, _deep(), _wide())


def raise_gains(ckpt):
    """Multiply new gains by sqrt(d / born), to make up for the factor of RMSNorm."""
    d, born = (ckpt["config"]["generations"][g]["n_embd"] for g in (-1, 0))
    for name, x in ckpt["model"].items():
        if "norm" in name and name.endswith(".1"):
            x.mul_((d / born) ** 0.5)


arms = {
    "scratch 4e-3": [_4e3],
    "stack, top, 4e-3": [_shallow | _4e3, _deep("stack", **_4e3)],
    "scratch 4e-3, half the budget": [_4e3 | dict(until=0.5)],
    "random, top, 4e-3": [_shallow | _4e3, _deep("random", **_4e3)],
    "copy, interleaved, 4e-3": [_shallow | _4e3, _deep("copy --place interleave", **_4e3)],
    "scratch 8e-3": [dict(learning_rate=8e-3)],
    "96 wide, random, 4e-3": [_narrow | _4e3, _wide(**_4e3)],
    "scratch 2e-3": [{}],
    "stack, top": [_shallow, _deep("stack")],
    "scratch 2e-3, half the budget": [dict(until=0.5)],
    "random, top": [_shallow, _deep("random")],
    "64 wide, clone": [_half, _wide("--init clone")],
    "96 wide, random": [_narrow, _wide()],
    "3 x 64, 3 x 96, 6 x 96, 6 x 128": _ladder,
    "a smaller one from scratch, 6 x 96": [_narrow | dict(until=1.0, eval_interval=800)],
    # those before with compile=False and eval_stages=True, which only take longer, on another machine
    "96 wide, random, once more": [_narrow, _wide()],
    "64 wide, random": [_half, _wide()],
    "96 wide, Adam dropped": [_narrow, _wide("--fresh_optimizer")],
    "96 wide, copy": [_narrow, _wide("--init copy")],
    "96 wide, shared, new x 1": [_narrow, _wide(policy="shared", new_rate=1.0)],
    "96 wide, shared, new x 1.3": [_narrow, _wide(policy="shared")],
    "96 wide, shared, new x 2": [_narrow, _wide(policy="shared", new_rate=2.0)],
    "96 wide, new gains sqrt(4/3)": [_narrow, _wide(edit="raise_gains")],
}
