"""Stage 4: 16 x 1536, 551M parameters."""

_after = "stage3.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 256"  # grow.py's options
out_dir = "out/stage4"
init_from = "out/stage3/grown.pt"
tokens_per_step = 2**20
batch_size = 8
max_steps = 4732
n_head = 12
n_embd = 1536
ffn_dim = 4096
learning_rate = 1e-3 * 512 / n_embd
