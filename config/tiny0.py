"""
Tiny stage 0, for a CPU: 4 x 64, rows for the tokens of the text's first stage. runs/demo.sh runs all three.

$ python prepare.py --input TEXT --out data/demo --words 3000,6000,all

On the demo's text that is 6,016 rows: 1,032,768 parameters, 262,720 without embedding and head, and 4,276,224
FLOPs a token. Learning rates of 3e-3 to 1e-2 end within 1 % of one another here; 2e-2 is worse (with 32,000
rows).
"""

out_dir = "out/tiny0"
data = "data/demo"
data_mix = "words3000"
rows = "words3000"
tokens_per_step = 1024
batch_size = 16
max_steps = 700
n_layer = 4
n_head = 2
n_embd = 64
head_dim = 32
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
