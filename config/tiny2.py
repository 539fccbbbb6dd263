"""
Tiny stage 2, for a CPU: 8 x 128, 9.9M parameters, most of them in Llama's vocabulary. runs/demo.sh runs all
three.

$ python grow.py --in out/tiny1/ckpt.pt --double depth --vocab all

  parameters     9,898,112, 1,706,112 without embedding and head
  tokens         256,000 = 250 steps x 1,024; 1,484,800 with the stages before
  FLOPs          36,372,480 a token, 9.31e+12 in all, 1.87e+13 with the stages before
"""

out_dir = "out/tiny2"
init_from = "out/tiny1/grown.pt"
_grow = "--double depth --vocab all"  # for runs/ladder.py: how tiny1 becomes this one
data = "data/demo"
data_mix = "all"  # and a fifth from the stages before
tokens_per_step = 1024
batch_size = 16
max_steps = 250
n_layer = 8
n_head = 4
n_embd = 128
head_dim = 32
ffn_dim = 384
vocab_size = 32000
block_size = 128
learning_rate = 4e-3 * 64 / n_embd
warmup_tokens = 51_200
horizon_tokens = 1_484_800  # all three stages
decay_share = 0.1  # rates fall after the last growth, at 1,228,800 tokens
eval_interval = 50
eval_tokens = 16384
log_interval = 25
compile = False
