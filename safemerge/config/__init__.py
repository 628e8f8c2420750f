"""Every declared thing: strict models, YAML in, resolved documents out."""
