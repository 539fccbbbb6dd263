"""
Stage 5: 16 x 2048, 941M parameters.

$ python grow.py --in out/stage4/ckpt.pt --params 2x --along width --multiple 256

  parameters     940,640,256, 809,568,256 without embedding and head: 1.79 x stage 4
  tokens         8,466,202,624 = 8,074 steps x 1,048,576, 9.0 a parameter; 18.9G with the stages before
  FLOPs          6,055,526,400 a token, 5.13e+19 in all, 7.58e+19 with the stages before; 36 H100-hours at 40 % MFU
  memory         15.1 GB of weights, gradients, moments; 49 GB with bf16 copies and 8 x 2048 tokens a forward
"""

out_dir = "out/stage5"
init_from = "out/stage4/grown.pt"
_grow = "--params 2x --along width --multiple 256"  # for runs/ladder.py: how stage 4 becomes this one
data = "data/babel"
tokens_per_step = 2**20
batch_size = 8
max_steps = 8074
n_layer = 16
n_head = 16
n_embd = 2048
head_dim = 128
ffn_dim = 5504
vocab_size = 32000
block_size = 2048
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
