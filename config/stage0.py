"""
Stage 0: 8 x 512, 58M parameters.

$ torchrun --nproc_per_node=8 train.py config/stage0.py
$ python runs/ladder.py run config/stage?.py                # all nine stages, one after another
$ python runs/ladder.py plan config/stage?.py               # what each takes: tokens, FLOPs, memory, hours

The ladder has nine stages. Each has about twice the non-embedding parameters of the one before, by width or
by depth. A grown stage's file has only what differs from the stage before, which it names as _after; _grow
has the options of grow.py that make it. The rules below are a place to start from, not measured.

tokens         20 a parameter in each stage, but no more than 43G. A model is grown when it has taken 23 to
               47 % of the FLOPs up to the next stage's end; half did best, at 0.3M parameters
               (runs/results/late). The ladder reads 169G, 25 a parameter of the last model, for 3.7e+21
               FLOPs. The last model from scratch would read 81G on these.
a step         0.26M tokens at first, 4.2M at the end; a multiple of block_size x 8 processes.
learning rate  1e-3 x 512 / n_embd is the peak of what is born in a stage. A slab that reads d inputs moves
               its output by about d x rate a step, and so by the same at any width. Older slabs are never
               faster than the new.
horizon        The end of the ladder. wsd lets all rates fall in the last tenth of its tokens, which is the
               last fifth of its FLOPs, from 152G on. The last growth, at 126G, is before: nothing anneals
               before it grows. For figures on the way: train.py --branch=decay.
growths        By width first, where tokens are cheap, and to the two sizes at which a ladder is likely to end
               by depth, which was worth more: 16 x 2048 (stage 5) and 32 x 4096. That is a guess: the order
               made no difference in runs/results/best_size, and in runs/results/doublings a growth in
               width before two in depth took more than it gave.
vocabulary     All rows from the start. Rows that grow with depth were worth 10 % of the FLOPs at 0.3M
               parameters (runs/results/vocabulary), but need text in stages: prepare.py --words, then
               rows = "words2000" here, and --vocab in _grow of a stage that follows.
memory         16 bytes a parameter (weights, gradients, two moments, all fp32), and 2 for weights cast to
               bf16. Activations take about 60 n_embd n_layer bytes a token without compile.
"""

out_dir = "out/stage0"
data = "data/babel"
tokens_per_step = 2**18
batch_size = 32
max_steps = 4461
n_layer = 8
n_head = 4
n_embd = 512
head_dim = 128
ffn_dim = 1408
vocab_size = 32000
block_size = 1024
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 168_851_144_704  # the whole ladder
decay_share = 0.1
