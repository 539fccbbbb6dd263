"""
Tiny stage 0, for a CPU: 4 x 64, 4.4M parameters, most of them in Llama's vocabulary. runs/demo.sh runs all three.

  parameters     4,358,720, 262,720 without embedding and head
  tokens         358,400 = 350 steps x 1,024
  FLOPs          14,254,080 a token, 5.11e+12 in all
  learning rate  4e-3 x 64 / n_embd: 3e-3 to 1e-2 end within 1 % of one another here, 2e-2 is worse
"""

out_dir = "out/tiny0"
data = "data/demo"
tokens_per_step = 1024
batch_size = 16
max_steps = 350
n_layer = 4
n_head = 2
n_embd = 64
head_dim = 32
ffn_dim = 256
vocab_size = 32000
block_size = 128
learning_rate = 4e-3 * 64 / n_embd
warmup_tokens = 51_200
horizon_tokens = 870_400  # all three stages
eval_interval = 50
eval_tokens = 8192
log_interval = 25
compile = False
