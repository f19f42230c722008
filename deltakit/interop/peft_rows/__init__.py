"""PEFT's tuners as rows of a comparison. Importing this package registers them."""

from deltakit.core.method import CLASSES
from deltakit.core.provider import PROVIDERS, Provider
from deltakit.interop.peft_rows.adapted import PeftAdaptedModel
from deltakit.interop.peft_rows.tuner import PeftTuner

PROVIDERS.add(PeftTuner.provider, Provider(method=PeftTuner, adapted=PeftAdaptedModel))
CLASSES.add(PeftTuner.__name__, PeftTuner)
