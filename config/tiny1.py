"""
Tiny stage 1, for a CPU: 4 x 128, rows for the tokens of the first two stages. runs/demo.sh runs all three.

$ python grow.py --in out/tiny0/ckpt.pt --double width --vocab words6000

  parameters     3,015,808 with 8,448 rows, as on the demo's text, 853,120 without embedding and head
  tokens         512,000 = 500 steps x 1,024; 1,228,800 with the stages before
  FLOPs          12,386,304 a token, 6.34e+12 in all, 9.41e+12 with the stages before
"""

out_dir = "out/tiny1"
init_from = "out/tiny0/grown.pt"
_grow = "--double width --vocab words6000"  # for runs/ladder.py: how tiny0 becomes this one
data = "data/demo"
data_mix = "words6000"  # and a fifth from the stages before
tokens_per_step = 1024
batch_size = 16
max_steps = 500
n_layer = 4
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
eval_interval = 100
eval_tokens = 16384
log_interval = 25
compile = False
