#!/usr/bin/env python3
"""Convert a timm model's weights; see mask_former/cli/convert_timm.py."""

import sys

from mask_former.cli.convert_timm import main

if __name__ == "__main__":
    sys.exit(main())
