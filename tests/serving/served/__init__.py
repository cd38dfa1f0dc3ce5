"""A package, so that pytest ends what its tests share with the last of them."""
