"""One file per stage of a run. `sani_dist/stage_list.py` has them in order; `rank.py` is what a rank carries from stage to stage."""
