"""One rank of a run, for launchers that start a script. The same command again goes on with a run that was stopped.

torchrun --nproc-per-node 2 launch/worker.py hospital.yaml --out run
deepspeed --num_accelerators 2 launch/worker.py hospital.yaml --out run
accelerate launch --config_file launch/accelerate_zero3.yaml launch/worker.py hospital.yaml --out run
"""

from sani_dist.orchestrate.worker import run_as_process

if __name__ == "__main__":
    run_as_process()
