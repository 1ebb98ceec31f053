"""A run as a job of a Ray cluster, submitted from outside of it. The same command again goes on with a run that was stopped.

python launch/ray_submit.py /shared/hospital.yaml --out /shared/run --set cluster.workers=8
python launch/ray_submit.py --follow JOB        python launch/ray_submit.py --stop JOB

Paths are those of the cluster: settings, model, text and run folder on storage that all its nodes share. Prints the job's log and ends
with its exit code (0 good, 2 bad input, 3 can be resumed; 1 when Ray itself failed). Ctrl-C ends the following, not the job.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

# Change this line, or give --address.
ADDRESS = "http://127.0.0.1:8265"

RAY_FAILED = 1
OF_RUN, OF_CLUSTER = "SANI_DIST_SET", "SANI_DIST_SET_CLUSTER"
POLL_SECONDS = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code of the job, or that of what was asked."""
    chosen = _parser().parse_args(arguments)
    if (chosen.config is None) == (chosen.follow is None and chosen.stop is None):
        print("error: give a settings file, or --follow JOB, or --stop JOB", file=sys.stderr)
        return 2
    if any("\n" in override for override in chosen.overrides):
        print("error: --set: expected one line; put longer settings into the file", file=sys.stderr)
        return 2
    try:
        client = JobSubmissionClient(chosen.address)
        if chosen.stop is not None:
            client.stop_job(chosen.stop)
            return 0
        job: str = chosen.follow or client.submit_job(
            entrypoint=entrypoint(chosen.config, chosen.out), runtime_env={"env_vars": variables(chosen.overrides)}
        )
        print(f"job {job}", flush=True)
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"\nthe job goes on: --follow {job} shows it again, --stop {job} ends it", file=sys.stderr)
        return 130
    except AuthenticationError:
        print("error: the cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH", file=sys.stderr)
    except ConnectionError:
        print(f"error: no Ray dashboard answers at {chosen.address}: is --address right?", file=sys.stderr)
    except RuntimeError as error:  # what the server refused; its first line says what, the rest is its traceback
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
    return RAY_FAILED


def entrypoint(config: str, out: str) -> str:
    """The job: begin the run, or go on with it when its folder is there. Settings of the command come by `variables`: a command line is
    shown to everybody on the machine and in the list of jobs."""
    settings, run = shlex.quote(config), shlex.quote(out)
    return (
        f"if [ -e {run}/config.yaml ]; then exec sani-dist resume {run} --set cluster.launcher=ray --set - <<END\n${OF_CLUSTER}\nEND\nfi\n"
        f"exec sani-dist run {settings} --out {run} --set cluster.launcher=ray --set - <<END\n${OF_RUN}\nEND\n"
    )


def variables(overrides: list[str]) -> dict[str, str]:
    """The settings of the command, one a line: all of them, and those that a run that has begun can take."""
    of_cluster = [override for override in overrides if override.startswith("cluster.")]
    return {OF_RUN: "\n".join(overrides), OF_CLUSTER: "\n".join(of_cluster)}


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the log of a job until it ends; returns its exit code."""
    asyncio.run(_print_log(client, job))
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_SECONDS)
    info = client.get_job_info(job)
    if status == JobStatus.SUCCEEDED:
        return 0
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        print(f"error: job {job} {status.value.lower()}: {info.message}", file=sys.stderr)
        return RAY_FAILED
    return int(info.driver_exit_code)


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run sani-dist as a job of a Ray cluster.")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="settings file, as the cluster sees it")
    parser.add_argument("--out", "-o", default="run", help="run folder, as the cluster sees it; new or begun")
    parser.add_argument("--set", action="append", dest="overrides", default=[], help="--set cluster.workers=8")
    parser.add_argument("--address", default=ADDRESS, help="of the Ray dashboard")
    parser.add_argument("--follow", metavar="JOB", help="show a job that was submitted before")
    parser.add_argument("--stop", metavar="JOB", help="end a job; its run can be resumed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
