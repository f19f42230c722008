"""The comparison harness: plan -> cells -> train -> evaluate -> measure -> store -> report.

Methods are used through their interface only: no method's name appears in it.
"""

from deltakit._moved import install

install()
