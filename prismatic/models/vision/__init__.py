"""Vision backbones. A module of this package may add entries to `zoo.VISION`; it is imported at the first look-up."""
