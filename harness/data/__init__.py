"""From a folder of files to a cohort: NIfTI, BIDS, verification, cache, splits, transforms.

``splits`` and ``transforms`` are maths (arrays in, arrays out); the other modules read and write files.
"""
