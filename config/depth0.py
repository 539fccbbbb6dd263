"""
A 1B by depth alone, at its full width from the start: 4 x 2048, 333M parameters, to an eighth of the FLOPs.

$ python runs/ladder.py run config/depth?.py

It takes the FLOPs of config/stage[0-5].py, and is expected to end a little ahead. Models of 0.6M parameters
begun at half the width, doubled at 2 %, were 0.006 to 0.014 bits per byte behind (runs/results/doublings).
"""

_after = "stage3.py"  # its settings hold where this file gives none
out_dir = "out/depth0"
init_from = ""
max_steps = 10940
horizon_tokens = 38_465_961_984  # all three stages
decay_share = 0.14  # of the tokens: the last fifth of the FLOPs
