"""The last stage of runs/evening.sh, after stage2: 16 x 1024, 271M parameters."""

_after = "stage2.py"  # its settings hold where this file gives none
_grow = "--params 2x --along depth"  # grow.py's options; depth takes copies, which come in slowly
out_dir = "out/evening"
init_from = "out/stage2/grown.pt"
batch_size = 16
n_layer = 16
block_size = 2048
