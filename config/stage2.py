"""Stage 2: 8 x 1024, 168M parameters."""

_after = "stage1.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage2"
init_from = "out/stage1/grown.pt"
tokens_per_step = 2**19
max_steps = 6421
n_head = 8
n_embd = 1024
ffn_dim = 2816
learning_rate = 1e-3 * 512 / n_embd
