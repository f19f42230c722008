"""The comparison harness: plan -> cells -> train -> evaluate -> measure -> store -> report.

It knows methods through their interface only: no method's name appears in it.
"""
