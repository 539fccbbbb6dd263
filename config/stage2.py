"""Stage 2: 4 x 1536, 212M parameters."""

_after = "stage1.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage2"
init_from = "out/stage1/grown.pt"
tokens_per_step = 2**19
batch_size = 16
max_steps = 8071
n_head = 12
n_embd = 1536
block_size = 2048
learning_rate = 1e-3 * 512 / n_embd
