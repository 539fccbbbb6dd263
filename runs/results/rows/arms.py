r"""
Does a vocabulary that grows pay with the batch, rate and decay that were tuned for 768 rows? Arms end at 6
layers of 64 with 7,680 rows of Llama 2's tokenizer, half of the FLOPs: 7.3M tokens for the control.
The small model has 3,072 rows, or all. The text is 19M tokens, of which the validation text is 131,072:

$ python prepare.py --input easy_and_middle/ --out data/rows --words 2000,10000,all --rows 0.98

The settings are those of ../late, the FLOPs those of ../vocabulary.
"""

import os
import runpy

_late = runpy.run_path(os.path.join(os.path.dirname(__file__), "../late/arms.py"))
budget = 4e13
seeds, control = [1337, 2], _late["control"]
common = _late["common"] | dict(data="data/rows", rows="words10000")
_trunk, _decay, _stack = (_late[name] for name in ("_trunk", "_decay", "_stack"))
_few, _more = dict(rows="words2000"), " --vocab words10000"

arms = {
    "scratch 4e-3, decay 20 %": [dict(until=0.4), *_trunk, _decay],
    "scratch 4e-3, decay 20 %, half the budget": [dict(until=0.4), _decay | dict(until=0.5)],
    "3 -> 6 at 50 %": [dict(n_layer=3, until=0.5), dict(grow=_stack, until=0.8), _decay],
    "3 -> 6 at 50 %, 3,072 rows until then": [
        _few | dict(n_layer=3, until=0.5),
        dict(grow=_stack + _more, until=0.8),
        _decay,
    ],
}
