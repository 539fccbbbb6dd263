"""
Do three doublings by depth pay more than two? Arms end at 24 layers of 64 with 768 rows, on the text of
../late and twice the budget of ../doublings. The best smaller models from scratch are in the tables of both.
Trained at the commit that log.md names, on one thread of one core, beside other work.
"""

import os
import runpy

_doublings = runpy.run_path(os.path.join(os.path.dirname(__file__), "../doublings/arms.py"))
budget = 2 * _doublings["budget"]
seeds, control = _doublings["seeds"], _doublings["control"]
deciding = ["scratch 4e-3, decay 20 %", "3 -> 6 -> 12 -> 24 at 6, 12, 25 %"]  # with all seeds
common = _doublings["_late"]["common"] | dict(n_layer=24)
_decay, _stack = _doublings["_decay"], _doublings["_stack"]
_twelve = [
    dict(n_layer=3, until=0.0625),
    dict(until=0.125),
    dict(grow=_stack, until=0.25),
    dict(grow="--depth 12 --init stack", until=0.4),
    dict(until=0.5),
]

arms = {
    "scratch 4e-3, decay 20 %": [dict(until=0.4), dict(until=0.8), _decay],
    "scratch 4e-3, decay 20 %, half the budget": [dict(until=0.4), _decay | dict(until=0.5)],
    "3 -> 6 -> 12 -> 24 at 12, 25, 50 %": [
        *_twelve,
        dict(grow="--depth 24 --init stack", until=0.8),
        _decay,
    ],
    # earlier, and from the second doubling on without copies of layers 1 and 2
    "3 -> 6 -> 12 -> 24 at 6, 12, 25 %": [
        dict(n_layer=3, until=0.0625),
        dict(grow=_stack, until=0.125),
        dict(grow="--depth 12 --init stack --skip 2", until=0.25),
        dict(grow="--depth 24 --init stack --skip 2", until=0.8),
        _decay,
    ],
    # the smaller model that is grown, on the trunk of the above
    "3 -> 6 -> 12 at 12, 25 %": [*_twelve, dict(until=0.8), _decay],
    # the best smaller size, on the trunk of ../late
    "6 x 64 from scratch": [dict(n_layer=6, until=0.2), dict(until=0.4), dict(until=0.8), _decay],
    "6 x 64 from scratch, 2e-3": [dict(n_layer=6, learning_rate=2e-3, until=0.8), _decay],
}
