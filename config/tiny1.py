"""Tiny stage 1, for a CPU: 4 x 128, rows for the tokens of the text's first two stages."""

_after = "tiny0.py"  # its settings hold where this file gives none
_grow = "--double width --vocab words6000"  # grow.py's options
out_dir = "out/tiny1"
init_from = "out/tiny0/grown.pt"
data_mix = "words6000"  # and a fifth from the stages before
rows = ""  # the checkpoint says which
max_steps = 500
n_head = 4
n_embd = 128
learning_rate = 4e-3 * 64 / n_embd
