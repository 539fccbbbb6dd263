"""
Stage 1: 8 x 768, 106M parameters.

$ python grow.py --in out/stage0/ckpt.pt --params 2x --along width --multiple 256

  parameters     105,788,160, 56,636,160 without embedding and head: 2.20 x stage 0
  tokens         952,107,008 = 3,632 steps x 262,144, 9.0 a parameter; 1.48G with the stages before
  FLOPs          562,692,096 a token, 5.36e+17 in all, 6.95e+17 with the stages before; 0.4 H100-hours at 40 % MFU
  memory         1.7 GB of weights, gradients, moments; 14 GB with bf16 copies and 32 x 1024 tokens a forward
"""

out_dir = "out/stage1"
init_from = "out/stage0/grown.pt"
_grow = "--params 2x --along width --multiple 256"  # for runs/ladder.py: how stage 0 becomes this one
data = "data/babel"
tokens_per_step = 2**18
batch_size = 32
max_steps = 3632
n_layer = 8
n_head = 6
n_embd = 768
head_dim = 128
ffn_dim = 2048
vocab_size = 32000
block_size = 1024
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
