"""
The first stage of runs/evening.sh: 4 x 1024, 117M parameters, to an eighth of the FLOPs.

As config/depth?.py, this grows by depth alone, at the full width from the start.
"""

_after = "stage1.py"  # its settings hold where this file gives none
out_dir = "out/evening0"
init_from = ""
max_steps = 3865
horizon_tokens = 3_470_524_416  # all three stages
decay_share = 0.14  # of the tokens: the last fifth of the FLOPs
