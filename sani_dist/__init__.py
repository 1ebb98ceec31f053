"""Remove memorised personal and confidential data from language models, on sharded workers, and prove it.

import sani_dist
run = sani_dist.sanitize(sani_dist.load_config(Path("run.yaml")), Path("run"))
"""

from sani_dist.api import audit, resume, sanitize
from sani_dist.config import Config
from sani_dist.config_file import load_config
from sani_dist.errors import InputError, RunError, SaniError

__all__ = ["Config", "InputError", "RunError", "SaniError", "audit", "load_config", "resume", "sanitize"]
