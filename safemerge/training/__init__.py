"""Plain step functions of the training stages; Ray is added in `safemerge.distributed`."""
