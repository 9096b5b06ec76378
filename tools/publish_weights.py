#!/usr/bin/env python3
"""Convert a checkpoint to a file for publication; see mask_former/cli/publish_weights.py."""

import sys

from mask_former.cli.publish_weights import main

if __name__ == "__main__":
    sys.exit(main())
