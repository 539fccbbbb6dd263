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


def _at(rate, stages):
    """Return the stages of an arm at another rate."""
    return [stage | dict(learning_rate=rate) for stage in stages]


arms = {
    "scratch 4e-3, decay 20 %": [*_trunk, _decay],
    "scratch 8e-3, decay 20 %": _at(8e-3, [*_trunk, _decay]),
    "scratch 2e-3, decay 20 %": _at(2e-3, [*_trunk, _decay]),
    "3 -> 6 at 50 %": _grown(0.5),
    "3 -> 6 at 50 %, 8e-3": _at(8e-3, _grown(0.5)),
    "scratch 4e-3, decay 20 %, twice the budget": [*_trunk, *_late["_twice"]],
}
