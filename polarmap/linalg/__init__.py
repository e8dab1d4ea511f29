"""Linear algebra on coded maps: operators, products, Gram matrices."""
