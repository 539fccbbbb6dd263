"""
Stage 7: 32 x 3072, 3.82B parameters.

$ python grow.py --in out/stage6/ckpt.pt --params 2x --along width --multiple 512

  parameters     3,820,686,336, 3,624,078,336 without embedding and head: 2.24 x stage 6
  tokens         34,384,904,192 = 8,198 steps x 4,194,304, 9.0 a parameter; 69G with the stages before
  FLOPs          27,164,934,144 a token, 9.34e+20 in all, 1.22e+21 with the stages before; 656 H100-hours at 40 % MFU
  memory         61.1 GB of weights, gradients, moments; 93 GB with bf16 copies and 1 x 4096 tokens a forward
                 More than the 80 GB of a GPU: sharded over 8, 33 GB each
"""

out_dir = "out/stage7"
init_from = "out/stage6/grown.pt"
_grow = "--params 2x --along width --multiple 512"  # for runs/ladder.py: how stage 6 becomes this one
data = "data/babel"
tokens_per_step = 2**22
batch_size = 1
max_steps = 8198
n_layer = 32
n_head = 24
n_embd = 3072
head_dim = 128
ffn_dim = 8192
vocab_size = 32000
block_size = 4096
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
shard = True
