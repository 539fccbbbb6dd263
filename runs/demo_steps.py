"""
Print the steps of the demo's three stages, scaled from its 4 minutes to others, and the tokens of all.

$ python runs/demo_steps.py 1
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from train import configure

minutes = float(sys.argv[1])
stages = [configure([f"config/tiny{i}.py"]) for i in range(3)]
steps = [max(10, round(stage["max_steps"] * minutes / 4)) for stage in stages]
print(*steps, sum(n * stage["tokens_per_step"] for n, stage in zip(steps, stages)))
