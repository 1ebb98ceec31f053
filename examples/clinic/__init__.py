"""The data, the model and the settings of `sani-dist demo`, all made from installed packages: nothing is downloaded."""

from examples.clinic.english import write_general_text
from examples.clinic.model import write_base_model
from examples.clinic.notes import write_notes
from examples.clinic.settings import demo_config

__all__ = ["demo_config", "write_base_model", "write_general_text", "write_notes"]
