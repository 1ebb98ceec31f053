#!/usr/bin/env bash
# A run on the ranks of the deepspeed launcher; the same command again goes on with it. Change these three lines.
CONFIG=hospital.yaml
RUN=run
RANKS=2
# To stop it with a checkpoint, signal the whole process group, as Ctrl-C does: deepspeed keeps a SIGTERM of its own from the ranks.
set -euo pipefail
deepspeed --num_accelerators "$RANKS" "$(dirname "$0")/worker.py" "$CONFIG" --out "$RUN"
