"""Generated subjects whose truth is known. The parts register themselves when they are imported."""
