#!/usr/bin/env python3
"""Convert checkpoints from and to transformers; see mask_former/cli/convert_hf_maskformer.py."""

import sys

from mask_former.cli.convert_hf_maskformer import main

if __name__ == "__main__":
    sys.exit(main())
