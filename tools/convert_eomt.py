#!/usr/bin/env python3
"""Convert a published EoMT checkpoint; see mask_former/cli/convert_eomt.py."""

import sys

from mask_former.cli.convert_eomt import main

if __name__ == "__main__":
    sys.exit(main())
