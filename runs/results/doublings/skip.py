"""
Which layers does a model use? Print by how many bits per byte it is worse without each of its layers.

$ PYTHONPATH=. python runs/results/doublings/skip.py out/compare/FOLDER/ckpt.pt ...
"""

import math
import sys

import torch

from checkpoint import build_model, load_checkpoint
from data import Tokenizer
from sample import log_probs, reference_text

for path in sys.argv[1:]:
    ckpt = load_checkpoint(path)
    model = build_model(ckpt)
    ids, n_bytes = reference_text(ckpt, Tokenizer.from_dict(ckpt["tokenizer"]), None)
    layers = list(model.layers)
    bpb = []
    for kept in [layers, *(layers[:i] + layers[i + 1 :] for i in range(len(layers)))]:
        model.layers = torch.nn.ModuleList(kept)
        bpb.append(-log_probs(model, ids, "cpu").sum().item() / n_bytes / math.log(2))
    print(f"{path}: {bpb[0]:.4f}; without:", *(f"{b - bpb[0]:.3f}" for b in bpb[1:]), flush=True)
