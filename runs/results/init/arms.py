"""
Was 12 x 64 from scratch drawn too small? init_std's 0.02 suits a width of 1,000 (sqrt(2 / 5 n_embd)); at 64
that is 0.079. The arms are those of ../doublings, drawn as GPT-NeoX draws: log.md has the change of model.py.
"""

import os
import runpy

_doublings = runpy.run_path(os.path.join(os.path.dirname(__file__), "../doublings/arms.py"))
budget, seeds, control, common = (_doublings[k] for k in ("budget", "seeds", "control", "common"))
_names = [
    "scratch 4e-3, decay 20 %, half the budget",
    "3 -> 6 -> 12 at 12, 25 %, half the budget",
]
arms = {name: _doublings["arms"][name] for name in _names}
