#!/usr/bin/env python3
"""Convert official Swin weights; see mask_former/cli/convert_swin.py."""

import sys

from mask_former.cli.convert_swin import main

if __name__ == "__main__":
    sys.exit(main())
