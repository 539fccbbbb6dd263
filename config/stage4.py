"""Stage 4: 8 x 2048, 536M parameters, to a quarter of the 1B's FLOPs."""

_after = "stage3.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/stage4"
init_from = "out/stage3/grown.pt"
max_steps = 6137
n_layer = 8
