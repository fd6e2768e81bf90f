"""A stand-in for serl-run that finishes at once, or misbehaves as its arm's name asks it to.

``fails`` ends with an error. ``waits`` makes one update, waits to be stopped, and leaves a checkpoint; when
it is resumed it finishes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from serl.algorithm_state import write_algorithm_state
from serl.config.load import load_experiment
from serl.run.checkpoint import checkpoint_path
from serl.run.run_dir import CONFIG, RunDir


def main(arguments: list[str]) -> int:
    resumed = Path(arguments[1]) if arguments[0] == "--resume" else None
    file, overrides = (resumed / CONFIG, arguments[2:]) if resumed else (arguments[0], arguments[1:])
    experiment = load_experiment(file, overrides, recorded=resumed is not None)
    run_dir = RunDir.reopen(resumed, experiment) if resumed else RunDir.create(experiment)
    print("own cluster" if os.environ.get("RAY_ADDRESS") == "local" else "the sweep's cluster")
    if experiment.name == "fails":
        print("the floor gave way", file=sys.stderr)
        return 1
    waits = experiment.name == "waits" and not resumed
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    last = 1 if waits else experiment.training.num_iterations
    for iteration in range(1, last + 1):
        with (run_dir.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"iteration": iteration}) + "\n")
    while waits and not stopped:
        time.sleep(0.05)
    folder = checkpoint_path(run_dir.path / "checkpoints", last)
    folder.mkdir(parents=True)
    write_algorithm_state(folder, {"weights_seq_no": last})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
