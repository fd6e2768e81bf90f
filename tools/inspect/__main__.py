"""Shows a run: its curves, failures and recorded trajectories, token by token, on one page.

python -m tools.inspect RUN_DIR [--out FILE.html]      # writes the page, which needs no network and no server
python -m tools.inspect RUN_DIR --serve [--port PORT]  # serves it to this machine, and follows the run

Exit codes: 0 written, or stopped with Ctrl-C; 2 nothing to show, nowhere to write, or a port that is taken.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path

from serl.run.records import TRAJECTORIES
from serl.run.surroundings import write_any_character
from tools.inspect.page import write_page
from tools.inspect.reading import Problems
from tools.inspect.run import read_run
from tools.inspect.serving import RunServer

_HOW_TO_RECORD = (
    "Train with logging.trajectories_per_iteration above 0 (a resumed run may change it), for example: "
    "serl-run EXPERIMENT.yaml logging.trajectories_per_iteration=8"
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/inspect.html")
    parser.add_argument("--serve", action="store_true", help="serve the page on localhost instead")
    parser.add_argument("--port", type=int, default=8790, help="default: 8790; 0: any that is free")
    options = parser.parse_args(arguments)
    run_dir: Path = options.run_dir
    if not run_dir.is_dir():
        return _refuse(f"{run_dir}: no such folder")
    if options.serve:
        return _serve(run_dir, options.port)
    if not (run_dir / TRAJECTORIES).is_file():
        return _refuse(f"{run_dir} has no {TRAJECTORIES}. {_HOW_TO_RECORD}")
    started = time.monotonic()
    problems = Problems()
    summary, trajectories = read_run(run_dir, problems)
    for sentence in problems.named:
        print(sentence, file=sys.stderr)
    if problems.count:
        print(f"{problems.count} lines or files could not be read and are left out", file=sys.stderr)
    if not trajectories:
        return _refuse(f"{run_dir / TRAJECTORIES} holds no trajectory that can be read. {_HOW_TO_RECORD}")
    out: Path = options.out or run_dir / "inspect.html"
    name = run_dir.resolve().name
    try:
        write_page(out, name, summary.as_values(name, problems), trajectories)
    except OSError as error:
        return _refuse(f"cannot write {out}: {error.strerror}")
    print(
        f"{out}: {len(trajectories)} trajectories, {summary.num_steps} steps, "
        f"{out.stat().st_size / 2**20:.1f} MiB, {time.monotonic() - started:.1f} s"
    )
    return 0


def _serve(run_dir: Path, port: int) -> int:
    try:
        server = RunServer(run_dir, port)
    except OSError as error:
        return _refuse(f"cannot listen on port {port}: {error.strerror}; --port takes another one")
    except OverflowError as error:
        return _refuse(f"--port {port}: {error}")
    with server:
        print(f"{server.url} follows {run_dir}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
