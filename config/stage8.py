"""
Stage 8: 32 x 4096, 6.74B parameters: Llama 2 7B, to the last size.

$ python grow.py --in out/stage7/ckpt.pt --params 2x --along width --multiple 512

  parameters     6,738,415,616, 6,476,271,616 without embedding and head: 1.79 x stage 7
  tokens         60,645,441,536 = 14,459 steps x 4,194,304, 9.0 a parameter; 130G with the stages before
  FLOPs          46,084,915,200 a token, 2.79e+21 in all, 4.01e+21 with the stages before; 1,962 H100-hours at 40 % MFU
  memory         107.8 GB of weights, gradients, moments; 153 GB with bf16 copies and 1 x 4096 tokens a forward
                 More than the 80 GB of a GPU: sharded over 8, 47 GB each
"""

out_dir = "out/stage8"
init_from = "out/stage7/grown.pt"
_grow = "--params 2x --along width --multiple 512"  # for runs/ladder.py: how stage 7 becomes this one
data = "data/babel"
tokens_per_step = 2**22
batch_size = 1
max_steps = 14459
n_layer = 32
n_head = 32
n_embd = 4096
head_dim = 128
ffn_dim = 11008
vocab_size = 32000
block_size = 4096
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 129_643_053_056  # the whole ladder
shard = True
