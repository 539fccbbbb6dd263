"""
Does growing by depth still pay where Muon trains the matrices inside layers? Arms are those of ../late: they
end at 6 layers of 64 with 768 rows after the same FLOPs, with its text, batch and decay. What Muon itself
computes is not counted: 2 % of the FLOPs here. Trained at the commit that log.md names, on one thread.
"""

import os
import runpy

_late = runpy.run_path(os.path.join(os.path.dirname(__file__), "../late/arms.py"))
train = "runs/results/muon/train_muon.py"
budget, control, common = _late["budget"], _late["control"], _late["common"]
seeds = [1337, 2, 3]
deciding = []
_decay, _trunk, _grown = (_late[name] for name in ("_decay", "_trunk", "_grown"))

arms = {
    "scratch 4e-3, decay 20 %": [*_trunk, _decay],
    "scratch 8e-3, decay 20 %": [*(stage | dict(learning_rate=8e-3) for stage in _trunk), _decay],
    "scratch 2e-3, decay 20 %": [*(stage | dict(learning_rate=2e-3) for stage in _trunk), _decay],
    "3 -> 6 at 50 %": _grown(0.5),
    "3 -> 6 at 50 %, 8e-3": [
        dict(n_layer=3, learning_rate=8e-3, until=0.5),
        dict(grow=_late["_stack"], learning_rate=8e-3, until=0.8),
        _decay,
    ],
    "scratch 4e-3, decay 20 %, twice the budget": [*_trunk, *_late["_twice"]],
}
