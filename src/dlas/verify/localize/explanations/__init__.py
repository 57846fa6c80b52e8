"""Reasons why a converted network does something else, one family per file, tried from the cheapest on."""
