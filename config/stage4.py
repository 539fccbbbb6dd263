"""Stage 4: 8 x 2048, 536M parameters."""

_after = "stage3.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage4"
init_from = "out/stage3/grown.pt"
tokens_per_step = 2**20
max_steps = 10221
n_head = 16
n_embd = 2048
ffn_dim = 5504
learning_rate = 1e-3 * 512 / n_embd
