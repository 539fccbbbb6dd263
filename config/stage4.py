"""
Stage 4: 16 x 1536, 551M parameters.

$ python grow.py --in out/stage3/ckpt.pt --params 2x --along width --multiple 256

  parameters     551,339,520, 453,035,520 without embedding and head: 2.20 x stage 3
  tokens         4,961,861,632 = 4,732 steps x 1,048,576, 9.0 a parameter; 10.4G with the stages before
  FLOPs          3,616,800,768 a token, 1.79e+19 in all, 2.45e+19 with the stages before; 13 H100-hours at 40 % MFU
  memory         8.8 GB of weights, gradients, moments; 34 GB with bf16 copies and 8 x 2048 tokens a forward
"""

out_dir = "out/stage4"
init_from = "out/stage3/grown.pt"
_grow = "--params 2x --along width --multiple 256"  # for runs/ladder.py: how stage 3 becomes this one
data = "data/babel"
tokens_per_step = 2**20
batch_size = 8
max_steps = 4732
n_layer = 16
n_head = 12
n_embd = 1536
head_dim = 128
ffn_dim = 4096
vocab_size = 32000
block_size = 2048
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
