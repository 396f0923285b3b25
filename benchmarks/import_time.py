"""What ``import natgrad_apps`` adds to ``import torch``, and what it must not import. Each import runs in a fresh process.

python benchmarks/import_time.py [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence

FOREIGN = ("stable_baselines3", "gymnasium", "pyro", "torch_geometric", "matplotlib", "rich", "jsonargparse", "scipy", "torch._dynamo")

SCRIPT = """
import sys, time
import torch
start = time.perf_counter()
import natgrad_apps
print(time.perf_counter() - start, *[name for name in sys.argv[1:] if name in sys.modules])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; exits with 1 if a foreign package was imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="processes (default 7)")
    options = parser.parse_args(arguments)
    seconds, found = [], set()
    for _ in range(options.runs):
        # `import torch` itself brings some of them in some versions; what counts is what is there afterwards and not after torch alone.
        output = subprocess.run([sys.executable, "-c", SCRIPT, *FOREIGN], capture_output=True, text=True, check=True).stdout.split()
        seconds.append(float(output[0]))
        found.update(output[1:])
    alone = "import sys, torch; print(*[name for name in sys.argv[1:] if name in sys.modules])"
    found -= set(subprocess.run([sys.executable, "-c", alone, *FOREIGN], capture_output=True, text=True, check=True).stdout.split())
    print(
        f"import natgrad_apps after import torch: median {statistics.median(seconds):.3f} s, range {min(seconds):.3f} - {max(seconds):.3f} s"
    )
    print(f"foreign packages imported: {', '.join(sorted(found)) or 'none'} (looked for {', '.join(FOREIGN)})")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
