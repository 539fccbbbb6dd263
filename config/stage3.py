"""Stage 3: 8 x 1536, 325M parameters."""

_after = "stage2.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage3"
init_from = "out/stage2/grown.pt"
batch_size = 16
max_steps = 12391
n_head = 12
n_embd = 1536
ffn_dim = 4096
block_size = 2048
learning_rate = 1e-3 * 512 / n_embd
