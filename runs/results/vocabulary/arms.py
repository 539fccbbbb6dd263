"""
Is a vocabulary that grows worth anything? Sizes and settings are those of ../best_size, but arms end at 6,144
rows, of which the small model has 3,456 or all: 8.2M tokens for the control. A further control is "3 x 64,
stack": the same growth, with all rows before it.
"""

import os
import runpy

_spec = runpy.run_path(os.path.join(os.path.dirname(__file__), "../best_size/arms.py"))
budget, seeds, control = (_spec[name] for name in ("budget", "seeds", "control"))
_shallow, _chain, _deep, _to = (_spec[name] for name in ("_shallow", "_chain", "_deep", "_to"))
common = _spec["common"] | dict(rows="words10000")
deciding = ["scratch 2e-3", "3 x 64, stack", "3,456 rows, 3 x 64, stack"]
_few, _more = _shallow | dict(rows="words2000"), "stack --vocab words10000"
_one = dict(rows="words2000", n_layer=1)

arms = {
    "scratch 2e-3": [{}],
    "scratch 2e-3, half the budget": [dict(until=0.5)],
    "3 x 64, stack": [_shallow, _deep()],
    "3,456 rows, 3 x 64, stack": [_few, _deep(_more)],
    "3,456 rows, 3 x 64, stack, easy text first": [_few | dict(data_mix="words5000"), _deep(_more)],
    "3,456 rows, 6 x 64": [_few | dict(n_layer=6), dict(grow="--vocab words10000")],
    "3,456 rows, 1 x 64, 2 x 64, 3 x 64, stack": _chain(
        [0.05, 0.12, 0.25], _one, _to(2), _to(3), _deep(_more)
    ),
    "scratch 1e-3": [dict(learning_rate=1e-3)],
    "scratch 4e-3": [dict(learning_rate=4e-3)],
    "3,456 rows, 3 x 64, stack, 1e-3": [_few | dict(learning_rate=1e-3), _deep(_more, learning_rate=1e-3)],
    "a smaller one from scratch, 3 x 64": [dict(n_layer=3)],
    "3,456 rows, 3 x 64, stack, on 0.8 of the budget": [_few | dict(until=0.2), _deep(_more, until=0.8)],
}
