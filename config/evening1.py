"""8 x 1024, 168M parameters, to a quarter of the FLOPs."""

_after = "evening0.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/evening1"
init_from = "out/evening0/grown.pt"
max_steps = 2348
n_layer = 8
