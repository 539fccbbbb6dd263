"""
When does a growth pay? Branches off one trunk of 3 layers of 64: from each point on the one goes on with 3
layers, the other with 6, for the FLOPs of 2M tokens at 6 layers and a decay over 0.5M more. Text and settings
are those of ../late, and the budget is one of there. Trained at the commit that log.md names, on one thread
of one core, beside other work.
"""

import os
import runpy

_late = runpy.run_path(os.path.join(os.path.dirname(__file__), "../late/arms.py"))
budget, common, control = _late["budget"], _late["common"], "scratch"
seeds = [1337]


def _branches(at, trunk):
    """Return the two branches at a share of the budget: {name: stages}."""
    end = [dict(until=at + 0.22), _late["_decay"] | dict(until=at + 0.28)]
    grown = [end[0] | dict(grow=_late["_stack"]), end[1]]
    return {f"at {at:.0%}: 3": [*trunk, *end], f"at {at:.0%}: 3 -> 6": [*trunk, *grown]}


arms, _trunk = {}, []
for _at in (0.12, 0.25, 0.5, 1.0):
    _trunk = [*_trunk, dict(n_layer=3, until=_at)]
    arms |= _branches(_at, _trunk)
