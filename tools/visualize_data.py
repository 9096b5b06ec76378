#!/usr/bin/env python3
"""Draw training examples or annotations; see mask_former/cli/visualize_data.py."""

import sys

from mask_former.cli.visualize_data import main

if __name__ == "__main__":
    sys.exit(main())
