"""Processes and memory: distributed set-up, ZeRO-3, shards, weights in and out, checkpoints."""
