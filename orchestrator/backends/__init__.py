"""Where processes run: one Protocol of three verbs, and what implements it."""
