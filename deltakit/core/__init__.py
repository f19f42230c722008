"""The vocabulary: site, functional form, insertion, composition, method. Needs torch only."""
