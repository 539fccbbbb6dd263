"""The third stage of runs/evening.sh, after stage1: 8 x 1024, 168M parameters."""

_after = "stage1.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/evening1"
init_from = "out/stage1/grown.pt"
n_layer = 8
