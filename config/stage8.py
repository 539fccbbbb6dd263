"""Stage 8: 32 x 4096, 6.7B parameters: Llama 2 7B."""

_after = "stage7.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/stage8"
init_from = "out/stage7/grown.pt"
max_steps = 14407
n_layer = 32
