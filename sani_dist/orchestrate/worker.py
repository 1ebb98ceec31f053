"""One rank, started by any launcher: `python -m sani_dist.orchestrate.worker RUN`.

Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from the environment. A failure is written as one line to
`logs/rank-N.error`, the traceback to the log of the rank; tracebacks show code, never values.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from sani_dist.errors import SaniError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one rank of a prepared run.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--local_rank", type=int, default=None, help="given by the deepspeed launcher; LOCAL_RANK is what counts"
    )
    run_folder: Path = parser.parse_args(arguments).run
    error_file = run_folder / "logs" / f"rank-{os.environ.get('RANK', '0')}.error"
    try:
        error_file.unlink(missing_ok=True)
        from sani_dist import pipeline
        from sani_dist.run import Run

        pipeline.work(Run.open(run_folder))
        return 0
    except SaniError as error:
        error_file.write_text(str(error) + "\n")
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        error_file.write_text(f"{type(error).__name__}; the traceback is in {error_file.with_suffix('.log')}\n")
        return 3


if __name__ == "__main__":
    # `os._exit`: a rank that failed must not wait in atexit handlers for collectives that the others have left.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
