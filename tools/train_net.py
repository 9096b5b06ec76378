#!/usr/bin/env python3
"""Train or evaluate the model of a config; see mask_former/cli/train.py."""

import sys

from mask_former.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
