"""Stage 6: 32 x 2048, 1.75B parameters."""

_after = "stage5.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/stage6"
init_from = "out/stage5/grown.pt"
tokens_per_step = 2**21
batch_size = 1
max_steps = 7511
n_layer = 32
block_size = 4096
