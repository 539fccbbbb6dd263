"""Stage 6: 16 x 3072, 2.0B parameters, to 8 % of the 7B's FLOPs."""

_after = "stage5.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 512"  # grow.py's options
out_dir = "out/stage6"
init_from = "out/stage5/grown.pt"
tokens_per_step = 2**21
batch_size = 2
max_steps = 4502
n_head = 24
n_embd = 3072
block_size = 4096
learning_rate = 1e-3 * 512 / n_embd
save_interval = 200
