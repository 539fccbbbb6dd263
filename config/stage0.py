"""
Stage 0: 4 x 640, 61M parameters.

$ torchrun --nproc_per_node=8 train.py config/stage0.py
$ python runs/ladder.py run config/stage[0-5].py            # a 1B: these stages, one after another, decayed
$ python runs/ladder.py run config/stage?.py                # all nine: a 7B
$ python runs/ladder.py plan config/stage?.py               # what each takes: tokens, FLOPs, memory, hours

A grown stage's file has only what differs from the stage before, which it names as _after; _grow has the
options of grow.py that make it. The rules below follow docs/evidence.md. It rests on models of 0.3M to 10M
parameters. Nothing of this size has been trained.

growths        Each about doubles the non-embedding parameters. Width comes first, to 2048 by 4 % of the 1B's
               FLOPs, and depth doubles at an eighth and a quarter of them. In runs/results/doublings these
               shares of depth, after one width at 2 %, ended 0.006 to 0.014 behind depth alone, depth?.py. To
               7B lead two widths, at 4 and 8 % of its FLOPs, and a depth at a quarter of them. A width
               at 12 %, between two depths, was worth 1.32, and 1.50 where it came before them.
tokens         20 a parameter in stages 0 to 2, embedding and head counted; as many as the shares say after.
               The ladder reads 43G to a 1B for 1.7e+20 FLOPs, and 140G to a 7B for 3.7e+21. From scratch the
               last models would read 27G and 81G on as many FLOPs.
a step         0.26M tokens at first, 4.2M at the end; a multiple of block_size x 8 processes.
learning rate  1e-3 x 512 / n_embd is the peak of what is born in a stage. A slab that reads d inputs moves
               its output by about d x rate a step, and so by the same at any width. Older slabs are never
               faster than the new.
horizon        The end of the ladder; ladder.py sets it to the end of the last stage that it is given. wsd
               lets all rates fall in the last 12 % of the tokens, which is the last fifth of the FLOPs.
               Nothing anneals before it grows. For a figure on the way, decay a copy: train.py
               config/stage3.py --branch=decay.
vocabulary     All rows from the start. Rows that grow with depth were worth 1.33 x, depth alone 1.23 x, where
               they are half of the FLOPs (runs/results/rows). They need text in stages: prepare.py --words,
               then rows = "words2000" here, and --vocab in _grow of a stage that follows.
memory         16 bytes a parameter (weights, gradients, two moments, all fp32), and 2 for weights cast to
               bf16. Activations take about 60 n_embd n_layer bytes a token without compile.
"""

out_dir = "out/stage0"
data = "data/babel"
tokens_per_step = 2**18
batch_size = 32
max_steps = 4675
n_layer = 4
n_head = 5
n_embd = 640
head_dim = 128
vocab_size = 32000
block_size = 1024
learning_rate = 1e-3 * 512 / n_embd
horizon_tokens = 139_526_144_000  # the whole ladder
decay_share = 0.12
