"""What `import natgrad_apps` costs on top of `import torch`, and which packages it pulls in.

    python benchmarks/import_time.py

Each repetition is a fresh interpreter that imports torch first and the package second. The bar is 0.3 s of CPU time (median), and that
neither Stable-Baselines3 nor Pyro nor PyTorch Geometric is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR = 0.3
FORBIDDEN = ("stable_baselines3", "gymnasium", "pyro", "torch_geometric")
PROGRAM = """
import json, sys, time
start = time.process_time(), time.perf_counter()
import torch
middle = time.process_time(), time.perf_counter()
before = set(sys.modules)
import natgrad_apps
end = time.process_time(), time.perf_counter()
roots = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps([middle[0] - start[0], end[0] - middle[0], end[1] - middle[1], roots]))
"""


@dataclass(frozen=True)
class Import:
    """One repetition.

    Attributes:
        torch: CPU seconds of `import torch`.
        package: CPU seconds of `import natgrad_apps` after it.
        wall: Elapsed seconds of the same.
        new: Top-level modules that it added.
    """

    torch: float
    package: float
    wall: float
    new: tuple[str, ...]


def measure() -> Import:
    """Import both in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    torch_seconds, package, wall, new = json.loads(done.stdout)
    return Import(torch_seconds, package, wall, tuple(new))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the package is too slow to import or imports what it must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    measure()  # compiles bytecode and fills the file cache
    found = [measure() for _ in range(args.repeats)]
    package = [i.package for i in found]
    median = statistics.median(package)
    bad = [name for name in FORBIDDEN if name in found[0].new]
    print(f"import torch          {statistics.median(i.torch for i in found):.3f} s CPU")
    print(f"import natgrad_apps   {median:.3f} s CPU more ({min(package):.3f}-{max(package):.3f}), bar {BAR} s")
    print(f"                      {statistics.median(i.wall for i in found):.3f} s elapsed")
    print(f"new top-level modules {', '.join(name for name in found[0].new if not name.startswith('_'))}")
    print(f"forbidden imports     {', '.join(bad) or 'none'}")
    return 1 if bad or median > BAR else 0


if __name__ == "__main__":
    raise SystemExit(main())
