"""Parts that accelerators are built from, in Amaranth: the bus, counters, requantisation, processing elements."""
