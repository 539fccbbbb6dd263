"""Stage 1: 4 x 1024, 117M parameters."""

_after = "stage0.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage1"
init_from = "out/stage0/grown.pt"
max_steps = 8921
n_head = 8
n_embd = 1024
learning_rate = 1e-3 * 512 / n_embd
