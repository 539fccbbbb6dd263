"""Stage 3: 4 x 2048, 333M parameters, to an eighth of the 1B's FLOPs."""

_after = "stage2.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage3"
init_from = "out/stage2/grown.pt"
tokens_per_step = 2**20
max_steps = 7567
n_head = 16
n_embd = 2048
learning_rate = 1e-3 * 512 / n_embd
