"""
The first stage of runs/evening.sh: 4 x 1024, 117M parameters, to a quarter of the FLOPs.

As config/depth?.py, this grows by depth alone, at the full width from the start.
"""

_after = "stage1.py"  # its settings hold where this file gives none
out_dir = "out/evening0"
init_from = ""
max_steps = 7730
horizon_tokens = 4_483_973_120  # all three stages
