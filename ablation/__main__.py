"""The console command `ablation`: `ablation study NAME` is `python -m ablation.study NAME`."""

import runpy
import sys

from ablation import __version__
from ablation.base.text import nearest

COMMANDS = {
    "study": "Run a study: tune every arm, confirm the best, compare them.",
    "launch": "Place workers of a study on SLURM, Ray, Kubernetes or this machine.",
    "report": "Write a study's report and print its short form.",
    "compare": "Compare studies of one question on several data sets or networks.",
    "predict": "Classify images with a study's champion.",
    "ui": "Open MLflow's UI on a store.",
    "data": "Look at a set of images: classes, near-duplicates, the cache.",
    "backbones": "Show where a network can be cut.",
    "bench": "Measure the speed of training on this machine.",
}

USAGE = "\n".join(
    [
        "Usage: ablation COMMAND [OPTIONS] ...",
        "",
        "Commands, each the same as python -m ablation.COMMAND:",
        *(f"  {name:<10} {description}" for name, description in COMMANDS.items()),
        "",
        "ablation COMMAND --help shows the options.",
    ]
)


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
    elif name == "--version":
        print(f"ablation, version {__version__}")
    elif name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"ablation.{name}", run_name="__main__", alter_sys=True)
    else:
        print(f"error: no command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
