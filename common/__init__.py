"""Everything the three scripts share."""
