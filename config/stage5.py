"""Stage 5: 16 x 2048, 941M parameters."""

_after = "stage4.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage5"
init_from = "out/stage4/grown.pt"
max_steps = 8074
n_head = 16
n_embd = 2048
ffn_dim = 5504
learning_rate = 1e-3 * 512 / n_embd
