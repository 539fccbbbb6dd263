"""
Does growing pay, trained three times as long? Arms end at the 6 layers of 128 of ../cpu (1.3M parameters
without embedding and head) after 1.2e14 FLOPs: 10.4M tokens for the control, 8 for each parameter. The text
is that of ../cpu. All is in bf16, which is faster on a CPU with AMX.
"""

import os
import runpy

_spec = runpy.run_path(os.path.join(os.path.dirname(__file__), "../cpu/arms.py"))
seeds, control, _deep, _wide = (_spec[name] for name in ("seeds", "control", "_deep", "_wide"))
_half, _narrow, _ladder = (_spec[name] for name in ("_half", "_narrow", "_ladder"))
_64 = dict(n_head=4, n_embd=64, head_dim=16, ffn_dim=192)
budget = 1.2e14
deciding = ["scratch 2e-3", "3 x 64, 3 x 96, 6 x 96, 6 x 128"]
common = _spec["common"] | dict(dtype="bfloat16", eval_interval=400, save_interval=400)

arms = {
    "scratch 2e-3": [{}],
    "scratch 1e-3": [dict(learning_rate=1e-3)],
    "3 x 128, stack": [dict(n_layer=3, until=0.25), _deep()],
    "3 x 64, 3 x 96, 6 x 96, 6 x 128": _ladder,
    "64 wide, random": [_half, _wide()],
    "a smaller one from scratch, 6 x 96": [_narrow | dict(until=1.0)],
    "scratch 4e-3": [dict(learning_rate=4e-3)],
    "scratch 2e-3, half the budget": [dict(until=0.5)],
    # ready, not trained yet
    "a smaller one from scratch, 6 x 64, 1e-3": [_64 | dict(learning_rate=1e-3)],
}
