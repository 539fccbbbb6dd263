"""16 x 1024, 271M parameters."""

_after = "evening1.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/evening2"
init_from = "out/evening1/grown.pt"
batch_size = 16
max_steps = 7026
n_layer = 16
block_size = 2048
