#!/usr/bin/env python3
"""Check a dataset before training on it; see mask_former/cli/check_dataset.py."""

import sys

from mask_former.cli.check_dataset import main

if __name__ == "__main__":
    sys.exit(main())
