"""
Tiny stage 1, for a CPU: 4 x 128, 9.0M parameters, most of them in Llama's vocabulary. runs/demo.sh runs all three.

$ python grow.py --in out/tiny0/ckpt.pt --double width

  parameters     9,045,120, 853,120 without embedding and head
  tokens         256,000 = 250 steps x 1,024; 614,400 with the stages before
  FLOPs          30,474,240 a token, 7.8e+12 in all, 1.29e+13 with the stages before
"""

out_dir = "out/tiny1"
init_from = "out/tiny0/grown.pt"
_grow = "--double width"  # for runs/ladder.sh: how tiny0 becomes this one
data = "data/demo"
tokens_per_step = 1024
batch_size = 16
max_steps = 250
n_layer = 4
n_head = 4
n_embd = 128
head_dim = 32
ffn_dim = 384
vocab_size = 32000
block_size = 128
learning_rate = 4e-3 * 64 / n_embd
warmup_tokens = 51_200
horizon_tokens = 870_400  # all three stages
eval_interval = 50
eval_tokens = 8192
log_interval = 25
compile = False
