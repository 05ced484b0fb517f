"""Fitting routers and stand-ins without training: from second-order costs, by regression."""
