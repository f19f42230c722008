"""Where the sites of a model are. Knows models, knows no method."""
