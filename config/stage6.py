"""
Stage 6: 32 x 2048, 1.75B parameters.

$ python grow.py --in out/stage5/ckpt.pt --params 2x --along depth

  parameters     1,750,206,464, 1,619,134,464 without embedding and head: 2.00 x stage 5
  tokens         15,751,708,672 = 7,511 steps x 2,097,152, 9.0 a parameter; 34.6G with the stages before
  FLOPs          13,328,449,536 a token, 2.1e+20 in all, 2.86e+20 with the stages before; 147 H100-hours at 40 % MFU
  memory         28.0 GB of weights, gradients, moments; 48 GB with bf16 copies and 1 x 4096 tokens a forward
"""

out_dir = "out/stage6"
init_from = "out/stage5/grown.pt"
_grow = "--params 2x --along depth"  # by plain copies of the layers; for runs/ladder.py: how stage 5 becomes this one
data = "data/babel"
tokens_per_step = 2**21
batch_size = 1
max_steps = 7511
n_layer = 32
n_head = 16
n_embd = 2048
head_dim = 128
ffn_dim = 5504
vocab_size = 32000
block_size = 4096
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
