"""Stage 5: 16 x 2048, 941M parameters: a 1B."""

_after = "stage4.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/stage5"
init_from = "out/stage4/grown.pt"
batch_size = 8
max_steps = 19608
n_layer = 16
