#!/usr/bin/env bash
# A run on the ranks of the deepspeed launcher. Change these three lines.
CONFIG=hospital.yaml
RUN=run
RANKS=2
set -euo pipefail

# One process finds the sensitive spans and tokenises; then every rank does the rest of the stages.
sani-dist run "$CONFIG" --out "$RUN" --prepare-only
deepspeed --num_accelerators "$RANKS" "$(dirname "$0")/worker.py" "$RUN"
