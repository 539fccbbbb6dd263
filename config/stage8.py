"""Stage 8: 32 x 4096, 6.74B parameters: Llama 2 7B, to the last size."""

_after = "stage7.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 512"  # grow.py's options
out_dir = "out/stage8"
init_from = "out/stage7/grown.pt"
max_steps = 14459
n_head = 32
n_embd = 4096
ffn_dim = 11008
learning_rate = 1e-3 * 512 / n_embd
