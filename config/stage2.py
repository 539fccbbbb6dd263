"""
Stage 2: 8 x 1024, 168M parameters.

$ python grow.py --in out/stage1/ckpt.pt --params 2x --along width --multiple 256

  parameters     168,313,856, 102,777,856 without embedding and head: 1.81 x stage 1
  tokens         1,514,668,032 = 2,889 steps x 524,288, 9.0 a parameter; 2.99G with the stages before
  FLOPs          913,833,984 a token, 1.38e+18 in all, 2.08e+18 with the stages before; 1.0 H100-hours at 40 % MFU
  memory         2.7 GB of weights, gradients, moments; 19 GB with bf16 copies and 32 x 1024 tokens a forward
"""

out_dir = "out/stage2"
init_from = "out/stage1/grown.pt"
_grow = "--params 2x --along width --multiple 256"  # for runs/ladder.py: how stage 1 becomes this one
data = "data/babel"
tokens_per_step = 2**19
batch_size = 32
max_steps = 2889
n_layer = 8
n_head = 8
n_embd = 1024
head_dim = 128
ffn_dim = 2816
vocab_size = 32000
block_size = 1024
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
