"""16 x 2048, 941M parameters: a 1B."""

_after = "depth1.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/depth2"
init_from = "out/depth1/grown.pt"
batch_size = 8
max_steps = 19607
n_layer = 16
