"""
Print name==version of packages, in the versions that uv.lock has. It runs before any package is there.

$ python runs/locked.py torch numpy
"""

import sys
import tomllib

with open("uv.lock", "rb") as f:
    versions = {package["name"]: package.get("version") for package in tomllib.load(f)["package"]}
print(*(f"{name}=={versions[name]}" for name in sys.argv[1:]))
