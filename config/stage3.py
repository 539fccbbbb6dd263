"""
Stage 3: 16 x 1024, 271M parameters.

$ python grow.py --in out/stage2/ckpt.pt --params 2x --along depth

  parameters     271,090,688, 205,554,688 without embedding and head: 2.00 x stage 2
  tokens         2,440,036,352 = 4,654 steps x 524,288, 9.0 a parameter; 5.43G with the stages before
  FLOPs          1,832,386,560 a token, 4.47e+18 in all, 6.55e+18 with the stages before; 3.1 H100-hours at 40 % MFU
  memory         4.3 GB of weights, gradients, moments; 37 GB with bf16 copies and 16 x 2048 tokens a forward
"""

out_dir = "out/stage3"
init_from = "out/stage2/grown.pt"
_grow = "--params 2x --along depth"  # by plain copies of the layers; for runs/ladder.py: how stage 2 becomes this one
data = "data/babel"
tokens_per_step = 2**19
batch_size = 16
max_steps = 4654
n_layer = 16
n_head = 8
n_embd = 1024
head_dim = 128
ffn_dim = 2816
vocab_size = 32000
block_size = 2048
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
