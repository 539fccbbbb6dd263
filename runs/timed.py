"""
Run a script of this repository, and note in a file how long it took and the most memory it had.

$ python runs/timed.py STEPS.txt "what this step is" sample.py --in out/ckpt.pt
"""

import resource
import signal
import subprocess
import sys
import time

began = time.time()
process = subprocess.Popen([sys.executable, *sys.argv[3:]])
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script has it, too, and may have something to save
code = process.wait()
unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
with open(sys.argv[1], "a", encoding="utf-8") as f:
    print(f"{sys.argv[2]:<48}{time.time() - began:>6.0f} s{peak / 1e9:>7.1f} GB", file=f)
sys.exit(code)
