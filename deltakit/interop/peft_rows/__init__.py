"""PEFT's tuners as rows of a comparison. Importing this package registers them."""

from deltakit.interop.peft_rows.tuner import PeftTuner

__all__ = ["PeftTuner"]
