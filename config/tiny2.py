"""Tiny stage 2, for a CPU: 8 x 128, 9.9M parameters, most of them in Llama's vocabulary."""

_after = "tiny1.py"  # its settings hold where this file gives none
_grow = "--double depth --vocab all"  # grow.py's options
out_dir = "out/tiny2"
init_from = "out/tiny1/grown.pt"
data_mix = "all"  # and a fifth from the stages before
max_steps = 250
n_layer = 8
eval_interval = 50
