"""
Do more doublings pay more, with the batch, rate and decay that were tuned for 6 x 64? Arms end at 12 layers
of 64 with 768 rows, on the text of ../late and four times its budget: 18.7M tokens for the control, 29 a
parameter. The best smaller model from scratch is "scratch 4e-3, decay 20 %, four times the budget" of
../late. Trained at the commit that log.md names, on one thread of one core, beside other work.
"""

import os
import runpy

_late = runpy.run_path(os.path.join(os.path.dirname(__file__), "../late/arms.py"))
budget = 4 * _late["budget"]
seeds, control = _late["seeds"], _late["control"]
deciding = [  # with all seeds
    "scratch 4e-3, decay 20 %",
    "3 -> 6 -> 12 at 25, 50 %",
    "3 -> 6 -> 12 at 12, 25 %",
    "3 -> 6 -> 12 at 12, 25 %, ramp",
    "3 -> 6 -> 12 at 6, 12 %",
    "3 -> 6 -> 12 at 12, 25 %, no copies of layers 1 and 2",
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 2, 25, 50 %",
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 2, 12, 25 %",
]
common = _late["common"] | dict(n_layer=12)
_decay, _small, _trunk, _stack = (_late[name] for name in ("_decay", "_small", "_trunk", "_stack"))
_warm = dict(warmup_tokens=800_000)
_twice, _three = _late["_twice"], [dict(n_layer=3, until=0.125), dict(until=0.25)]


def _deeper(at, end=1.0, how=" --init stack"):
    """Return 6 layers until a share of the FLOPs, then 12, by plain copies; one clock decays all.

    end: where the arm ends, as a share of the budget. how: grow.py's further arguments."""
    return [
        dict(grow=f"--depth 6{how}", until=at),
        dict(grow=f"--depth 12{how}", until=0.8 * end),
        _decay | dict(until=end),
    ]


def _narrow(wide, deep, deeper, end=1.0):
    """Return 3 layers of half the width until a share of the FLOPs, of the full one until another, then as
    _deeper."""
    return [_small | dict(until=wide), dict(grow="--double width", until=deep), *_deeper(deeper, end)]


def _between(deep, wide, deeper):
    """Return 3 layers of half the width until a share of the FLOPs, 6 of them until another, 6 of the full
    width until a third, then 12."""
    return [
        _small | dict(until=deep),
        dict(grow=_stack, until=wide),
        dict(grow="--double width", until=deeper),
        *_deeper(deeper)[1:],
    ]


arms = {
    "scratch 4e-3, decay 20 %": [*_trunk, _decay],
    "3 -> 6 -> 12 at 25, 50 %": [*_three, *_deeper(0.5)],
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 8, 25, 50 %": _narrow(0.08, 0.25, 0.5),
    "3 x 32 -> 6 x 32 -> 6 x 64 -> 12 at 8, 25, 50 %": _between(0.08, 0.25, 0.5),
    # the control: its rate, batch and decay, one at a time
    "scratch 2e-3, decay 20 %": [dict(learning_rate=2e-3, until=0.8), _decay],
    "scratch 8e-3, decay 20 %": [_warm | dict(learning_rate=8e-3, until=0.8), _decay],
    # warmed up over 100 steps, which is train.py's default, and not over 12
    "scratch 4e-3, warmup 0.8M, decay 20 %": [_warm | dict(until=0.8), _decay],
    "scratch 4e-3, warmup 0.8M, decay 20 %, half the budget": [
        _warm | dict(until=0.4),
        _decay | dict(until=0.5),
    ],
    "scratch 4e-3, warmup 0.8M, decay 20 %, twice the budget": [
        _warm | dict(until=0.8),
        _warm | dict(until=1.6),
        _decay | dict(until=2.0),
    ],
    "scratch 4e-3, 16,384, decay 20 %": [dict(tokens_per_step=16384, until=0.8), _decay],
    "scratch 4e-3, decay 10 %": [*_trunk, dict(until=0.9), _decay],
    "scratch 4e-3, decay 40 %": [_trunk[0], _decay],
    "scratch 4e-3, decay 20 %, twice the budget": [*_trunk, *_twice],
    "scratch 4e-3, decay 20 %, half the budget": [dict(until=0.4), _decay | dict(until=0.5)],
    "3 -> 6 -> 12 at 25, 50 %, half the budget": [_three[0], *_deeper(0.25, end=0.5)],
    "3 -> 6 -> 12 at 12, 25 %, half the budget": [
        dict(n_layer=3, until=0.0625),
        *_deeper(0.125, end=0.5),
    ],
    "scratch 4e-3, decay 20 %, three times the budget": [  # on the trunk of twice
        *_trunk,
        _twice[0],
        dict(until=2.4),
        _decay | dict(until=3.0),
    ],
    "6 x 64 from scratch, three times the budget": [  # the best smaller size, on the trunk of ../late
        dict(n_layer=6, until=0.4),
        dict(until=0.8),
        dict(until=1.6),
        dict(until=2.4),
        _decay | dict(until=3.0),
    ],
    "3 -> 6 -> 12 at 25, 50 %, three times the budget": [
        dict(n_layer=3, until=0.75),
        *_deeper(1.5, end=3.0),
    ],
    "3 -> 6 -> 12 at 12, 25 %, three times the budget": [
        *_three,
        dict(until=0.375),
        *_deeper(0.75, end=3.0),
    ],
    "3 -> 6 -> 12 at 25, 50 %, ramp": [*_three, *_deeper(0.5, how="")],  # as grow.py grows by default
    "3 -> 6 -> 9 -> 12 at 25, 42, 58 %": [  # smaller jumps, R about as high: on top come three more
        *_three,
        dict(grow=_stack, until=0.42),
        dict(grow="--depth 9 --init stack", until=0.58),
        *_deeper(0.58)[1:],
    ],
    "scratch 2e-3, decay 20 %, twice the budget": [
        dict(learning_rate=2e-3, until=1.6),
        _decay | dict(until=2.0),
    ],
    "scratch 2e-3, decay 20 %, three times the budget": [
        dict(learning_rate=2e-3, until=2.4),
        _decay | dict(until=3.0),
    ],
    "3 -> 6 -> 12 at 25, 50 %, 2e-3, three times the budget": [
        stage | dict(learning_rate=2e-3) for stage in [dict(n_layer=3, until=0.75), *_deeper(1.5, end=3.0)]
    ],
    "3 -> 6 -> 12 at 12, 25 %": [_three[0], *_deeper(0.25)],
    "3 -> 6 -> 12 at 12, 25 %, 8e-3": [
        *(stage | _warm | dict(learning_rate=8e-3) for stage in [_three[0], *_deeper(0.25)[:2]]),
        _decay,
    ],
    "3 -> 6 -> 12 at 12, 25 %, ramp": [_three[0], *_deeper(0.25, how="")],  # as grow.py grows by default
    "3 -> 6 -> 12 at 12, 25 %, no copies of layers 1 and 2": [
        _three[0],
        _deeper(0.25)[0],
        _deeper(0.25)[1] | dict(grow="--depth 12 --init stack --skip 2"),
        _decay,
    ],
    "3 -> 6 -> 12 at 6, 12 %": [dict(n_layer=3, until=0.0625), *_deeper(0.125)],
    "3 -> 6 -> 12 at 6, 12 %, warmup 0.8M": [  # of what is new
        dict(n_layer=3, until=0.0625),
        *(stage | _warm for stage in _deeper(0.125)[:2]),
        _decay,
    ],
    "3 -> 6 -> 12 at 3, 6 %": [dict(n_layer=3, until=0.03125), *_deeper(0.0625)],
    "3 -> 6 -> 12 at 12, 35 %": [_three[0], *_deeper(0.35)],
    "3 -> 12 at 50 %": [  # once, to four times the layers
        *_three,
        dict(until=0.5),
        *_deeper(0.5)[1:],
    ],
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 2, 25, 50 %": _narrow(0.02, 0.25, 0.5),
    # as config/stage?.py: width while next to nothing is spent, then depth early
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 2, 12, 25 %": _narrow(0.02, 0.125, 0.25),
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 2, 12, 25 %, half the budget": _narrow(0.01, 0.0625, 0.125, end=0.5),
    "3 x 32 -> 3 x 64 -> 6 -> 12 at 2, 12, 25 %, three times the budget": _narrow(0.06, 0.375, 0.75, end=3.0),
    # the same with a depth first, the width in between
    "3 x 32 -> 6 x 32 -> 6 x 64 -> 12 at 2, 12, 25 %": _between(0.02, 0.125, 0.25),
}
