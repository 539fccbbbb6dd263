"""
Does growing pay by depth, twice as deep as ../best_size? Arms end at 12 layers of 64 (0.64M parameters
without embedding and head) after 8e13 FLOPs: 12.6M tokens for the control, 20 for each parameter. The text is
that of ../cpu, whose docstring says how it is prepared. The head is a fifth of a step's FLOPs, at 6 layers a
third.
"""

import os
import runpy

_spec = runpy.run_path(os.path.join(os.path.dirname(__file__), "../best_size/arms.py"))
seeds, control, _chain, _to = (_spec[name] for name in ("seeds", "control", "_chain", "_to"))
budget = 8e13
deciding = ["scratch 1e-3", "3 x 64, 6 x 64, stack"]
common = _spec["common"] | dict(n_layer=12)
_one = dict(n_layer=1)

arms = {
    "scratch 1e-3": [dict(learning_rate=1e-3)],
    "scratch 2e-3": [{}],
    "1, 2, 3, 6 x 64, stack": _chain([0.02, 0.05, 0.12, 0.25], _one, _to(2), _to(3), _to(6), _to(12)),
    "3 x 64, 6 x 64, stack": _chain([0.08, 0.25], dict(n_layer=3), _to(6), _to(12)),
    "a smaller one from scratch, 6 x 64, 1e-3": [dict(n_layer=6, learning_rate=1e-3)],
    "scratch 1e-3, half the budget": [dict(learning_rate=1e-3, until=0.5)],
    # ready, not trained yet
    "scratch 5e-4": [dict(learning_rate=5e-4)],
    "6 x 64, stack": [dict(n_layer=6, until=0.25), _to(12)],
    "3 x 64, stack": [dict(n_layer=3, until=0.25), _to(12)],
    "a smaller one from scratch, 6 x 64": [dict(n_layer=6)],
}
