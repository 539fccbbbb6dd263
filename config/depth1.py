"""8 x 2048, 536M parameters, to a quarter of the FLOPs."""

_after = "depth0.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/depth1"
init_from = "out/depth0/grown.pt"
max_steps = 6137
n_layer = 8
