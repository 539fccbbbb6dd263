"""Stage 7: 16 x 4096, 3.5B parameters, to a quarter of the 7B's FLOPs."""

_after = "stage6.py"  # its settings hold where this file gives none
_grow = "--params 2x --along width --multiple 512"  # grow.py's options
out_dir = "out/stage7"
init_from = "out/stage6/grown.pt"
tokens_per_step = 2**22
batch_size = 1
max_steps = 6421
n_head = 32
n_embd = 4096
learning_rate = 1e-3 * 512 / n_embd
save_interval = 50  # a step takes half a minute on eight H100, by runs/ladder.py plan
shard = True  # from here on, a stage is more than a GPU of 80 GB holds
