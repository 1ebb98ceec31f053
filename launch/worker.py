"""One rank of a prepared run, for launchers that start a script.

sani-dist detect hospital.yaml --out run ...            see deepspeed.sh for the whole sequence
deepspeed --num_accelerators 2 launch/worker.py run
torchrun --nproc-per-node 2 launch/worker.py run
"""

import sys

from sani_dist.orchestrate.worker import main

if __name__ == "__main__":
    sys.exit(main())
