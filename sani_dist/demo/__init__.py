"""The data, the model and the settings of `sani-dist demo`, all made from installed packages: nothing is downloaded."""

from sani_dist.demo.english import write_general_text
from sani_dist.demo.model import write_base_model
from sani_dist.demo.notes import write_notes
from sani_dist.demo.settings import demo_config

__all__ = ["demo_config", "write_base_model", "write_general_text", "write_notes"]
