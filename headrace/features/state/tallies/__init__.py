"""How often each value occurred, tile by tile, in bounded memory."""
